"""The Proxmox API over HTTPS with a token. The only importer of proxmoxer and requests.

proxmoxer builds the requests and the token header; everything below it is ours, because Debian's two versions
(1.2.0 and 2.2.0) have no time-out or a fixed one, lose parts of error answers and follow redirects.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.ssl_ import create_urllib3_context

from pve_zfsbackup.errors import ConfigError, PveError, PveTrustError, PveUnreachableError
from pve_zfsbackup.host.api import Token, plain, refusal

with warnings.catch_warnings():  # both import-time modules switch off urllib3's TLS warnings for the process
    import proxmoxer.backends.https
    import proxmoxer.core

READ_TIMEOUT: Final = 35.0  # pveproxy gives up after 30 s and says so with 596 (pve-facts §0.3): let it
CONNECT_TIMEOUT: Final = 15.0  # the TLS handshake included, for which a node under load takes its time
POOL_SIZE: Final = 16


class HttpsApi:
    """The API with a token. One session with keep-alive; may be used by several threads at once.

    The server is known by `fingerprint` (sha256 of its certificate) when given, else by `ca_file`, else by
    the system's certificate authorities. Proxies, netrc and redirects are not followed.
    """

    parallel = 8

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        ca_file: Path | None = None,
        fingerprint: str | None = None,
        timeout: float = READ_TIMEOUT,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.username or parts.path.strip("/"):
            raise ConfigError([f"{url}: not the address of an API, expected https://HOST:8006"])
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"https://{host}:{parts.port or 8006}"
        self.calls = 0
        self._token = token
        self._timeout = timeout
        self._lock = threading.Lock()
        self._adapter = _Adapter(ca_file, fingerprint)
        # Host and base URL are not taken from proxmoxer: 1.2.0 cannot read an IPv6 address.
        backend = proxmoxer.backends.https.Backend(
            "localhost", user=token.user, token_name=token.name, token_value=token.secret, verify_ssl=True
        )
        self._session = backend.get_session()
        self._session.trust_env = False
        self._session.mount("https://", self._adapter)
        # It logs the parameters of calls at INFO; no configuration of the root logger shall show them.
        logging.getLogger("proxmoxer.core").setLevel(logging.WARNING)

    def get(self, path: str, /, **params: Any) -> Any:
        return self.request("GET", path, params)

    def post(self, path: str, /, **params: Any) -> Any:
        return self.request("POST", path, params)

    def put(self, path: str, /, **params: Any) -> Any:
        return self.request("PUT", path, params)

    def delete(self, path: str, /, **params: Any) -> Any:
        return self.request("DELETE", path, params)

    def describe(self) -> str:
        return f"{self.url} as {self._token}"

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> HttpsApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """See `Api.request`. A GET whose connection broke under it is sent once more."""
        for last in (method != "GET", True):
            with self._lock:
                self.calls += 1
            try:
                return self._send(method, path, plain(params or {}), timeout or self._timeout)
            except requests.RequestException as error:
                if last or not _cut_off(error):
                    problem = self._unreachable(error)
                    break
        raise problem  # outside the handler: what requests raises carries the request, and that the secret

    def _send(self, method: str, path: str, params: dict[str, Any], timeout: float) -> Any:
        resource = proxmoxer.core.ProxmoxResource(
            base_url=f"{self.url}/api2/json/{quote(path.lstrip('/'), safe='/:@!,=+')}",
            session=self._session,
            serializer=_Json,
        )
        self._adapter.local.timeout = timeout
        call = {"GET": resource.get, "POST": resource.post, "PUT": resource.put, "DELETE": resource.delete}
        return call[method](**params)

    def _unreachable(self, error: requests.RequestException) -> PveUnreachableError:
        if isinstance(error, requests.exceptions.SSLError) and not _cut_off(error):
            return PveTrustError(
                f"{self.url}: the server's certificate is not the expected one: {_cause(error)}",
                hint="check fingerprint or CA file in the configuration",
            )
        if isinstance(error, requests.Timeout):
            return PveUnreachableError(f"{self.url}: no answer in time: {_cause(error)}")
        return PveUnreachableError(f"{self.url}: {_cause(error)}", hint="is pveproxy running?")


class _Adapter(HTTPAdapter):
    """Trust, time-outs and errors are decided here, whatever the layers above pass down."""

    def __init__(self, ca_file: Path | None, fingerprint: str | None) -> None:
        self._pin = _fingerprint(fingerprint)
        self._verify: bool | str = str(ca_file) if ca_file else True
        if self._pin:
            self._verify = False  # the pin stands for it: urllib3 compares the certificate itself
        self._ca_file = ca_file
        self.local = threading.local()
        super().__init__(pool_connections=1, pool_maxsize=POOL_SIZE)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        if self._pin:
            kwargs["assert_fingerprint"] = self._pin
        else:
            kwargs["ssl_context"] = _context(self._ca_file)
        super().init_poolmanager(*args, **kwargs)

    def close(self) -> None:
        """Close the connections now: urllib3 2 does so only when the garbage collector finds the pool."""
        for key in self.poolmanager.pools.keys():  # noqa: SIM118 - not iterable itself
            pool = self.poolmanager.pools.get(key)
            if pool is not None:
                pool.close()
        super().close()

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        timeout = float(self.local.timeout)
        # In total: a slow handshake and a slow answer together take no longer.
        limits = urllib3.Timeout(total=timeout, connect=min(timeout, CONNECT_TIMEOUT))
        response = super().send(request, stream=False, timeout=limits, verify=self._verify)  # type: ignore[arg-type]
        text = response.content.decode("utf-8", "replace")
        if response.status_code >= 400:
            raise refusal(response.status_code, *_explain(response.reason or "", text))
        if response.status_code >= 300 or "json" not in response.headers.get("Content-Type", ""):
            raise PveError(f"{urlsplit(request.url or '').netloc}: this is no Proxmox API", status=response.status_code)
        return response


class _Json:
    """proxmoxer's serializer, without its habit of handing on what it could not read."""

    @staticmethod
    def loads(response: requests.Response) -> Any:
        try:
            return json.loads(response.content)["data"]
        except (ValueError, KeyError, TypeError):
            # Cut, maybe: what was asked for may be done.
            raise PveUnreachableError("the API's answer is not understood", status=response.status_code) from None


def _context(ca_file: Path | None) -> ssl.SSLContext:
    context = create_urllib3_context()  # not ssl's: urllib3 1.26 matches the host name itself
    try:
        if ca_file:
            context.load_verify_locations(cafile=str(ca_file))
        else:
            context.load_default_certs()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError([f"{ca_file}: not a CA certificate: {error}"]) from None
    # Python 3.13 refuses authorities without a keyUsage extension by default; Proxmox's own has none.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _fingerprint(text: str | None) -> str:
    digits = (text or "").replace(":", "").lower()
    if digits and not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ConfigError([f"{text}: not a sha256 fingerprint"], hint="as in `ssl_fingerprint` of `pvesh get /nodes`")
    return digits


def _cut_off(error: requests.RequestException) -> bool:
    """Whether the connection ended by itself: an idle one that the server closed, or a handshake that broke off.

    Only a certificate that was seen and refused speaks of trust.
    """
    if error.args and isinstance(error.args[0], urllib3.exceptions.ProtocolError):
        return True
    return isinstance(_innermost(error), ssl.SSLEOFError | ssl.SSLZeroReturnError)


def _innermost(error: BaseException) -> BaseException:
    """The outer texts of requests and urllib3 are mostly object addresses."""
    while True:
        inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _cause(error: BaseException) -> str:
    text = str(_innermost(error))
    return text.partition(">: ")[2] or text


def _explain(reason: str, text: str) -> tuple[str, dict[str, str]]:
    """Message and errors per parameter. `message` exists since pve-http-server 5.2, before only the reason."""
    try:
        body = json.loads(text)
    except ValueError:
        return reason, {}
    if not isinstance(body, dict):
        return reason, {}
    errors = body.get("errors")
    return str(body.get("message") or reason).strip(), errors if isinstance(errors, dict) else {}
