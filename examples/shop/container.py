"""What the handlers are given: repositories over the session of the running transaction."""

from dependency_injector import containers, providers

import cqrs
from examples.shop.orders import Orders
from examples.shop.stock import Stock


class Container(containers.DeclarativeContainer):
    session = providers.Callable(cqrs.current_session)
    orders = providers.Factory(Orders, session=session)
    stock = providers.Factory(Stock, session=session)
