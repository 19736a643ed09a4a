import pytest

from cohobate.errors import UserError
from flows.auth_check import check


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PREFECT_API_URL": "http://127.0.0.1:4200/api"},
        {"PREFECT_API_URL": "http://localhost:4200/api", "RAY_ADDRESS": "127.0.0.1:6379"},
        {"PREFECT_API_URL": "http://[::1]:4200/api", "RAY_ADDRESS": "auto"},
        {"PREFECT_API_URL": "https://prefect.example/api", "PREFECT_API_AUTH_STRING": "me:secret"},
        {"PREFECT_API_URL": "https://api.prefect.cloud/api", "PREFECT_API_KEY": "pnu_x"},
        {"RAY_ADDRESS": "10.0.0.7:6379", "RAY_AUTH_MODE": "token"},
        {"RAY_ADDRESS": "ray://127.0.0.1:10001"},
    ],
)
def test_loopback_and_authenticated_servers_are_used(environment: dict[str, str]) -> None:
    check(environment)


@pytest.mark.parametrize(
    ("environment", "fix"),
    [
        ({"PREFECT_API_URL": "http://10.0.0.7:4200/api"}, "PREFECT_SERVER_API_AUTH_STRING"),
        ({"PREFECT_API_URL": "http://prefect:4200/api"}, "PREFECT_SERVER_API_AUTH_STRING"),
        ({"RAY_ADDRESS": "ray-head:6379"}, "RAY_AUTH_MODE=token"),
        ({"RAY_ADDRESS": "ray://10.0.0.7:10001"}, "RAY_AUTH_MODE=token"),
    ],
)
def test_open_servers_are_refused_with_the_fix(environment: dict[str, str], fix: str) -> None:
    with pytest.raises(UserError) as refused:
        check(environment)
    assert fix in refused.value.fix
