"""What a table is at the destination: names, columns and transforms, between the source's rows and the destination."""
