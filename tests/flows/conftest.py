"""A Prefect server for the tests that run rounds."""

from collections.abc import Iterator

import pytest

from tests import prefect_server as server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the whole test run, so that each round need not start one."""
    with server.prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url
