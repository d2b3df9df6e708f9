from typing import Any

import faststream.confluent
import faststream.kafka
import faststream.nats
import faststream.rabbit
import pytest
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.rabbit import RabbitBroker, TestRabbitBroker
from faststream.security import SASLScram256

import cqrs
from cqrs.brokers.faststream import FastStreamBroker
from cqrs.brokers.kafka import Kafka
from cqrs.brokers.rabbitmq import RabbitMQ
from cqrs.brokers.urls import from_object
