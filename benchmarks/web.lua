wrk.method = "POST"
wrk.body = '{"order_id": "A-1007", "customer": "hedy", "sku": "cocoa", "quantity": 1}'
wrk.headers["content-type"] = "application/json"
wrk.headers["x-correlation-id"] = "0195e8a4-7d1c-7000-8000-000000000000"
