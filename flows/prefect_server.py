"""Check the Prefect server of `PREFECT_API_URL`: reachable, a Prefect server, accepts us."""

import json
import os
from urllib.parse import urlsplit

from cohobate.errors import UserError
from cohobate.proxies import proxies

_TIMEOUT = 5.0
"""Seconds for the connection and for the reply."""
_OWN = "or use the project's own: unset PREFECT_API_URL"


def check() -> None:
    """Raise where the server of `PREFECT_API_URL` cannot be used; do nothing without the variable.

    Raises:
        UserError: it does not reply, is no Prefect server, refuses the credentials, or is of
            another major version.
    """
    if not (url := os.environ.get("PREFECT_API_URL")):
        return
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise _refused(
            url, "PREFECT_API_URL is not a URL", f"export PREFECT_API_URL={_example(url)}"
        )
    from httpx import ConnectError, HTTPError, HTTPStatusError, TimeoutException
    from packaging.version import InvalidVersion

    try:
        _request_version(url)
    except HTTPStatusError as error:
        raise _by_status(url, error.response.status_code) from None
    except TimeoutException:
        what = f"Prefect does not answer at {public(url)} within {_TIMEOUT:.0f} s"
        raise _refused(url, what, f"start that server, {_OWN}") from None
    except ConnectError as error:
        raise _by_connection(url, str(error)) from None
    except HTTPError as error:
        raise _by_connection(url, str(error) or type(error).__name__) from None
    except (json.JSONDecodeError, InvalidVersion, TypeError):  # a page of another server
        raise _no_api(url) from None
    except RuntimeError as error:  # Prefect's message on versions that do not match
        fix = f"install the server's version here, {_OWN}"
        raise _refused(url, str(error).splitlines()[0], fix) from None
    except (ImportError, ValueError) as error:  # httpx reads the proxy variables
        raise _by_proxy(error) from None


def _request_version(url: str) -> None:
    from prefect.client.base import ServerType
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client({"timeout": _TIMEOUT}, sync_client=True) as client,
    ):
        if client.server_type is ServerType.CLOUD:
            client.hello()
            return
        version = client.api_version()
        client.raise_for_api_version_mismatch()
        if not isinstance(version, str):
            raise TypeError(version)


def _by_status(url: str, status: int) -> UserError:
    if status in (401, 403):
        fix = "export PREFECT_API_AUTH_STRING=user:password   (Prefect Cloud: PREFECT_API_KEY)"
        return _refused(url, f"the Prefect server refuses the credentials ({status})", fix)
    if status == 404:
        return _no_api(url)
    fix = f"read that server's log, {_OWN}"
    if proxies(os.environ):
        fix = f"if a proxy replied: export NO_PROXY={urlsplit(url).hostname}; else {fix}"
    return _refused(url, f"the Prefect server replies with HTTP {status}", fix)


def _by_connection(url: str, reason: str) -> UserError:
    what = f"Prefect does not answer at {public(url)}: {reason}"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return _refused(url, what, "export PREFECT_API_SSL_CERT_FILE=<file of the CA certificates>")
    if "SSL" in reason and url.startswith("https:"):
        plain = public(url).replace("https:", "http:", 1)
        fix = f"if that server does not speak TLS: export PREFECT_API_URL={plain}"
        return _refused(url, what, fix)
    return _refused(url, what, f"start that server, {_OWN}")


def _no_api(url: str) -> UserError:
    return _refused(
        url,
        "there is no Prefect API at that address",
        f"export PREFECT_API_URL={_example(url)}   ({_OWN})",
    )


def _by_proxy(error: Exception) -> UserError:
    named = ", ".join(proxies(os.environ))  # their values may hold a password
    first = str(error).splitlines()[0]
    fix = "unset ALL_PROXY all_proxy   (HTTP_PROXY and HTTPS_PROXY do, with http:// addresses)"
    return UserError(f"a proxy variable cannot be used: {first}", where=named, fix=fix)


def _refused(url: str, what: str, fix: str) -> UserError:
    return UserError(what, where=f"PREFECT_API_URL={public(url)}", fix=fix)


def public(url: str) -> str:
    """Return a URL without the password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _example(url: str) -> str:
    """Return the address that was probably meant: Prefect's API lies below /api."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return f"{parts.scheme}://{parts.netloc or '127.0.0.1:4200'}/api"
