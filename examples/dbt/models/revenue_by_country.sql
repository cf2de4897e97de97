select
    country,
    sum(orders) as orders,
    sum(revenue) as revenue
from {{ ref('customer_orders') }}
group by country
