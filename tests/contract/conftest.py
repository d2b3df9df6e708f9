import pytest

pytest.register_assert_rewrite("tests.contract.publisher", "tests.contract.store", "tests.contract.broker_bench")
