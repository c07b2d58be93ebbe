"""Which language-model server to use: by the environment, a file with named servers, or a search.

A workflow may name a server but never contain its address: anyone can share a workflow, and an
address in it could make this machine send images and keys to the workflow's author.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, unquote, urlsplit

from .._program import PACK
from .errors import ServerConfigError

EMBEDDED = "embedded"
"""The address, name and kind of the engine inside this package (`llm.llamacpp`)."""
KINDS = {
    "ollama": "Ollama",
    "openai": "",
    "llama-server": "llama-server",
    "lmstudio": "LM Studio",
    "llama-swap": "llama-swap",
    "vllm": "vLLM",
    EMBEDDED: "the embedded engine",
}
"""The kinds of servers: their names in image-refinery.toml, and their product names."""
DEFAULT_URL = "http://127.0.0.1:11434"
DEFAULT_NAME = "default"
CONFIG_NAME = "image-refinery.toml"

_DNS_KEPT_S = 60.0
_OLLAMA_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Server:
    """One language-model server.

    Attributes:
        name: the name in image-refinery.toml, or "default".
        url: base URL without credentials and without a trailing slash, or "embedded".
        kind: one of `KINDS`; "": not known yet (see `llm.probe`).
        search: there is no address: search for the server on this machine.
        api_key: sent as a bearer token, over https or to loopback only.
        login: user and password from the URL.
        shares_gpu: whether its models are on the GPU that ComfyUI uses; None: find out.
        unload: whether to unload models after their stage; None: depends on the kind of server.
        assume: capabilities that its models have even if it does not report them ("vision").
    """

    name: str = DEFAULT_NAME
    url: str = DEFAULT_URL
    kind: str = "ollama"
    search: bool = False
    api_key: str | None = field(default=None, repr=False)
    login: tuple[str, str] | None = field(default=None, repr=False)
    shares_gpu: bool | None = None
    unload: bool | None = None
    assume: frozenset[str] = frozenset()

    @property
    def product(self) -> str:
        """The product name, such as "Ollama"; "" if the kind is not known."""
        return KINDS.get(self.kind, "")

    @property
    def title(self) -> str:
        """The server's name in a message: "Ollama at http://127.0.0.1:11434"."""
        if self.is_embedded:
            return self.product
        return f"{self.product or 'the server'} at {self.url}"

    @property
    def where(self) -> str:
        """A model's location in a message: "on the Ollama server at http://127.0.0.1:11434"."""
        if self.is_embedded:
            return "in the embedded engine"
        name = self.product if "server" in self.product else f"{self.product} server".strip()
        return f"on the {name} at {self.url}"

    @property
    def is_embedded(self) -> bool:
        """Whether it is the engine inside this package."""
        return self.kind == EMBEDDED

    @property
    def host(self) -> str:
        """Host name or address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """Whether the address always means this machine."""
        return self.is_embedded or is_loopback(self.host)

    @property
    def may_send_key(self) -> bool:
        """Whether a secret may be sent: over https, or within this machine."""
        return self.url.startswith("https://") or self.is_loopback

    @property
    def is_this_machine(self) -> bool:
        """Whether the host is loopback, Docker's host, or a name that resolves to this machine."""
        return self.is_loopback or _is_local_host(self.host, int(time.monotonic() / _DNS_KEPT_S))


def parse_host(text: str) -> str:
    """Return the base URL for any form of host that Ollama accepts in OLLAMA_HOST.

    A wildcard address, on which a server listens, becomes the loopback address, which a client can
    reach. `localhost` becomes 127.0.0.1: Windows tries ::1 for two seconds first. Credentials are
    dropped; see `parse_login`.

    >>> parse_host("")
    'http://127.0.0.1:11434'
    >>> parse_host("localhost")
    'http://127.0.0.1:11434'
    >>> parse_host("0.0.0.0")
    'http://127.0.0.1:11434'
    >>> parse_host(":5000")
    'http://127.0.0.1:5000'
    >>> parse_host("0.0.0.0:5000")
    'http://127.0.0.1:5000'
    >>> parse_host("[::]:5000")
    'http://[::1]:5000'
    >>> parse_host("::1")
    'http://[::1]:11434'
    >>> parse_host("[2001:db8::1]")
    'http://[2001:db8::1]:11434'
    >>> parse_host("gpu-box")
    'http://gpu-box:11434'
    >>> parse_host("gpu-box:8080/ollama/")
    'http://gpu-box:8080/ollama'
    >>> parse_host("http://example.com")
    'http://example.com:80'
    >>> parse_host("https://example.com/ollama")
    'https://example.com:443/ollama'
    >>> parse_host("ollama.com")
    'https://ollama.com:443'
    >>> parse_host(" 'http://10.0.0.2:11434/' ")
    'http://10.0.0.2:11434'
    >>> parse_host("https://user:secret@example.com")
    'https://example.com:443'
    >>> parse_host("ftp://example.com")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    ServerConfigError
    >>> parse_host("gpu-box:99999")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    ServerConfigError
    """
    parts, scheme_given = _split(text)
    scheme = parts.scheme.lower()
    if scheme not in _SCHEME_PORTS:
        raise _bad_address("begins with neither http:// nor https://")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise _bad_address("has a port that is not a number from 1 to 65535")
    host = parts.hostname or "127.0.0.1"
    if not scheme_given and host == "ollama.com" and port is None:
        scheme = "https"
    if port is None:
        named = scheme_given or scheme == "https"
        port = _SCHEME_PORTS[scheme] if named else _OLLAMA_PORT
    path = parts.path.rstrip("/")
    if any(sign.isspace() or not sign.isprintable() or sign in "\"'" for sign in host + path):
        raise _bad_address("has a space, a quotation mark or an invisible character in it")
    host = _connectable(host)
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{scheme}://{netloc}{path}"


def parse_login(text: str) -> tuple[str, str] | None:
    """Return user and password of a URL such as https://user:password@host, else None.

    >>> parse_login("https://me:p%40ss@example.com")
    ('me', 'p@ss')
    >>> parse_login("gpu-box:11434")
    """
    parts, _ = _split(text)
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("box")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def find_server(
    name: str = DEFAULT_NAME,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Server:
    """Return the server with this name, without sending a request.

    "default" (or an empty name) is OLLAMA_BASE_URL, else the file's `default` entry, else
    OLLAMA_HOST, else a server found by a search on this machine. Any other name is looked up in
    the file; the names of kinds ("lmstudio") need no entry there.

    Args:
        config: path of image-refinery.toml; None: `config_path()`.
        environ: environment; None: `os.environ`.

    Raises:
        ServerConfigError: the name is unknown, or an address or the file cannot be used.
    """
    environ = os.environ if environ is None else environ
    entries = _read(config or config_path())
    if name and name != DEFAULT_NAME:
        return _named(name, entries, environ)
    key = environ.get("OLLAMA_API_KEY") or None
    if address := environ.get("OLLAMA_BASE_URL", "").strip():
        return _server(DEFAULT_NAME, address, key)
    if chosen := entries.get("default"):
        entry = _named(str(chosen), entries, environ)
        return replace(entry, api_key=entry.api_key or key)
    if address := environ.get("OLLAMA_HOST", "").strip():
        return _server(DEFAULT_NAME, address, key)
    return Server(kind="", search=True, api_key=key)


def split_model(name: str, server: str = DEFAULT_NAME) -> tuple[str, str]:
    """Return the model and the server's name in a choice such as "llava @ box".

    >>> split_model("llava:7b @ box"), split_model("llava:7b", "box"), split_model("a@q4")
    (('llava:7b', 'box'), ('llava:7b', 'box'), ('a@q4', 'default'))
    """
    model, separator, other = name.rpartition(" @ ")
    return (model.strip(), other.strip()) if separator else (name.strip(), server)


def server_names(config: Path | None = None) -> list[str]:
    """Return "default" and the names in the file; an unreadable file counts as empty."""
    try:
        entries = _read(config or config_path())
    except ServerConfigError:
        return [DEFAULT_NAME]
    servers = entries.get("servers")
    names: list[str] = sorted(cast("dict[str, Any]", servers)) if isinstance(servers, dict) else []
    return [DEFAULT_NAME, *(name for name in names if name != DEFAULT_NAME)]


def keeps_answers(config: Path | None = None) -> bool:
    """Return whether finished answers may be kept: `keep_answers` in image-refinery.toml.

    Raises:
        ServerConfigError: it is neither true nor false, or the file cannot be read.
    """
    keep = _read(config or config_path()).get("keep_answers", True)
    if not isinstance(keep, bool):
        raise ServerConfigError(f"keep_answers in {CONFIG_NAME} must be true or false.")
    return keep


def config_path() -> Path:
    """Return the path of image-refinery.toml: for a pack in custom_nodes, ComfyUI's user folder."""
    if PACK.parent.name == "custom_nodes":
        return PACK.parents[1] / "user" / CONFIG_NAME
    import platformdirs

    return Path(platformdirs.user_config_dir("image-refinery", appauthor=False)) / CONFIG_NAME


def _read(path: Path) -> dict[str, Any]:
    # Imported here: it takes several milliseconds, and most users have no such file.
    if not path.is_file():
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ServerConfigError(
            f"{path} cannot be read ({error}). Correct or remove the file."
        ) from error


def _named(name: str, entries: Mapping[str, Any], environ: Mapping[str, str]) -> Server:
    servers: Any = entries.get("servers")
    table: Any = cast("dict[str, Any]", servers).get(name) if isinstance(servers, dict) else None
    if table is None and name == EMBEDDED:
        return _server(name, EMBEDDED)
    if table is None and name in KINDS:
        return Server(name=name, kind=name, search=True)
    if not isinstance(table, dict):
        raise ServerConfigError(
            f'There is no server named "{name}" in {CONFIG_NAME}. Add a table [servers.{name}] '
            'with its url there, or choose the server "default".'
        )
    entry = cast("dict[str, Any]", table)
    problem = f'The server "{name}" in {CONFIG_NAME}'
    url, key, key_env = entry.get("url"), entry.get("key"), entry.get("key_env")
    kind = entry.get("kind", "")
    if kind and kind not in KINDS:
        raise ServerConfigError(f"{problem} has an unknown kind. Write one of {list(KINDS)}.")
    if kind == EMBEDDED:
        url = url or EMBEDDED
    if not isinstance(url, str) or not url.strip():
        raise ServerConfigError(f"{problem} has no url. Add one.")
    if key_env is not None:
        key = environ.get(str(key_env)) or None
    shares, unload = entry.get("shares_gpu", "auto"), entry.get("unload")
    if shares not in (True, False, "auto"):
        raise ServerConfigError(f'{problem}: shares_gpu must be true, false or "auto".')
    if unload not in (True, False, None):
        raise ServerConfigError(f"{problem}: unload must be true or false.")
    assume = entry.get("assume", [])
    if not isinstance(assume, list):
        raise ServerConfigError(f'{problem}: assume must be a list such as ["vision"].')
    try:
        server = _server(name, url, None if key is None else str(key))
    except ServerConfigError as error:
        raise ServerConfigError(
            f"{problem} has a url that {error.cause}. Write it as http://host:1234."
        ) from None
    return replace(
        server,
        **({"kind": kind} if kind else {}),
        shares_gpu=None if shares == "auto" else shares,
        unload=unload,
        assume=frozenset(str(word) for word in cast("list[Any]", assume)),
    )


def _server(name: str, address: str, key: str | None = None) -> Server:
    if address.strip().lower() == EMBEDDED:
        return Server(name=name, url=EMBEDDED, kind=EMBEDDED)
    # Other programs expect "/v1" in the address of OpenAI's API, so users may write it.
    url = parse_host(address).removesuffix("/v1")
    return Server(name=name, url=url, kind="", api_key=key, login=parse_login(address))


def _split(text: str) -> tuple[SplitResult, bool]:
    address = text.strip().strip("\"'").strip()
    scheme_given = "://" in address
    if not scheme_given:
        if address.count(":") > 1 and "[" not in address and "@" not in address:
            address = f"[{address}]"  # a bare IPv6 address
        address = "http://" + address
    try:
        return urlsplit(address), scheme_given
    except ValueError:
        raise _bad_address("has brackets that do not hold an IPv6 address") from None


def _connectable(host: str) -> str:
    if host.lower() == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


def _bad_address(what: str) -> ServerConfigError:
    # The address itself may hold a password, so it is not repeated.
    return ServerConfigError(
        f"The address of the server {what}. Write it as http://host:11434 "
        f"(OLLAMA_BASE_URL, OLLAMA_HOST or {CONFIG_NAME}).",
        cause=what,
    )


@lru_cache(maxsize=64)
def _is_local_host(host: str, period: int) -> bool:
    """Return whether a name means this machine; looks it up once per period of `_DNS_KEPT_S`."""
    if host.lower() == "host.docker.internal":
        return True
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(_is_local_address(str(address)) for address in addresses)


def _is_local_address(address: str) -> bool:
    """Return whether an address is this machine's: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
