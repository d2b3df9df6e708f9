CREATE PUBLICATION cqrs_outbox FOR TABLE cqrs_outbox WHERE (destination = 'broker') WITH (publish = 'insert');
SELECT pg_create_logical_replication_slot('cqrs_outbox', 'pgoutput');
