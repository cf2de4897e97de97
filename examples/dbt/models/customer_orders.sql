-- Orders and revenue of each customer, customers without any included.
select
    c.id as customer_id,
    c.country,
    count(o.id) as orders,
    coalesce(sum(o.total), 0) as revenue
from {{ source('shop_public', 'customers') }} as c
left join {{ source('shop_public', 'orders') }} as o on o.customer_id = c.id
group by c.id, c.country
