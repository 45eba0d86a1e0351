"""The settings of a host in ssh_config(5), as OpenSSH reads them. Nothing is run: `Match exec` is refused."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.devices.validate import printable
from edgeprune.errors import SecurityError, UsageError
from edgeprune.limits import LIMITS

SYSTEM = Path("/etc/ssh/ssh_config")
DEPTH = 16  # of Include, as in OpenSSH
LISTS = ("identityfile", "certificatefile")  # each line adds to these; of all other options the first line counts
FLAGS = {"yes": True, "true": True, "no": False, "false": False}
SLOT = {"proxyjump": "proxy", "proxycommand": "proxy"}  # the first of both counts
UNSUPPORTED = {
    "knownhostscommand": "it runs a program. Add the key to known_hosts",
    "revokedhostkeys": "write @revoked lines in known_hosts",
    "certificatefile": "put the certificate beside its key, as KEY-cert.pub",
    "pkcs11provider": "add the key to the SSH agent: ssh-add -s",
    "bindinterface": "write BindAddress",
}


@dataclass(frozen=True)
class Value:
    """The words of an option, and the file and line that they are from."""

    words: tuple[str, ...]
    place: str

    @property
    def text(self) -> str:
        """The first word."""
        return self.words[0] if self.words else ""


@dataclass(frozen=True)
class Asked:
    """What the command line of ssh would hold: the host, and a user and a port where they are given, by the file `place`."""

    host: str
    user: str
    local_user: str
    given: Mapping[str, str] = field(default_factory=dict)
    place: str = "the target file"


class Settings:
    """The options of one host, {name in lower case: values}. Reading is done by `settings`."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self.found = {name: [Value((value,), asked.place)] for name, value in asked.given.items()}
        self.host, self._final, self.wants_final = asked.host, False, False

    @property
    def asked(self) -> str:
        """The host as it was asked for, whatever its real name is."""
        return self._asked.host

    def first(self, name: str, default: str = "") -> str:
        """The option's first word."""
        return self.found[name][0].text if name in self.found else default

    def every(self, name: str) -> list[Value]:
        """All values of an option."""
        return self.found.get(name, [])

    def flag(self, name: str) -> bool:
        """Whether an option is yes. Raises `UsageError` for another word than ssh takes."""
        for value in self.every(name):
            if value.text.lower() not in FLAGS:
                raise UsageError(f"{value.place}: {name} {printable(value.text)} is neither yes nor no. Fix the line.")
            return FLAGS[value.text.lower()]
        return False

    def again(self, host: str) -> None:
        """Prepare for the second reading: `Match final` applies, and `Host` compares the real name, which stays."""
        host = host.lower()
        self.host, self._final = host, True
        self.found["hostname"] = [Value((host.replace("%", "%%"),), "HostName")]

    def set(self, keyword: str, value: Value) -> None:
        """Keep an option of a block that applies."""
        name = SLOT.get(keyword, keyword)
        if keyword == "proxycommand":
            value = Value((keyword, *value.words), value.place)
        if name in LISTS:
            known = self.found.setdefault(name, [])
            if value.words not in [one.words for one in known]:
                known.append(value)
        else:
            self.found.setdefault(name, [value])

    def hostname(self) -> str:
        """The real host name: HostName, in which %h is the requested name."""
        for value in self.every("hostname"):
            return expanded(value, {"h": self.host})
        return self.host

    def host_applies(self, patterns: tuple[str, ...]) -> bool:
        """Whether a line `Host PATTERNS` applies."""
        return listed(self.host, patterns)

    def match_applies(self, value: Value) -> bool:
        """Whether a line `Match CRITERIA` applies. Raises `UsageError` for a criterion that cannot be decided."""
        words, applies = list(value.words), True
        while words:
            name, equals, argument = words.pop(0).partition("=")
            wanted = not name.startswith("!")
            name = name.lstrip("!").lower()
            if name == "all":
                found = True
            elif name in ("canonical", "final"):
                self.wants_final |= name == "final"
                found = self._final
            else:
                if not equals and not words:
                    raise UsageError(f"{value.place}: Match {printable(name)} has no value. Fix the line.")
                found = self._criterion(name, argument if equals else words.pop(0), applies, value.place)
            applies = applies and found == wanted
        return applies

    def _criterion(self, name: str, argument: str, applies: bool, place: str) -> bool:
        subjects: dict[str, Callable[[], str]] = {
            "host": self.hostname,
            "originalhost": lambda: self._asked.host,
            "user": lambda: self.first("user", self._asked.user),
            "localuser": lambda: self._asked.local_user,
            "tagged": lambda: self.first("tag"),
        }
        if name in ("host", "originalhost"):  # unlike `Host`, in letters of either case
            return listed(subjects[name]().lower(), argument.lower().split(","))
        if name in subjects:
            return listed(subjects[name](), argument.split(","))
        if not applies:
            return False
        why = "it runs a program" if name == "exec" else "edgeprune does not know it"
        host = printable(self._asked.host)
        raise UsageError(
            f'{place}: "Match {printable(name)}" is not supported: {why}. Exclude this host, since ssh reads criteria in their'
            f' order: "Match !originalhost {host} {printable(name)} …".'
        )


def settings(asked: Asked, home: Path) -> Settings:
    """Read `~/.ssh/config`, then the system's file; twice where `Match final` asks for it.

    Raises:
        UsageError: a file cannot be read, or an option of this host is not supported.
        SecurityError: others can write a file of the user.
    """
    found = Settings(asked)
    _read_all(found, home)
    if found.wants_final:
        found.again(found.hostname())
        _read_all(found, home)
    _require_supported(found)
    return found


def _read_all(found: Settings, home: Path) -> None:
    for file, folder, own in ((home / ".ssh/config", home / ".ssh", True), (SYSTEM, SYSTEM.parent, False)):
        _File(found, home, folder, own).read(file, 0, True)


def _require_supported(found: Settings) -> None:
    for name, fix in UNSUPPORTED.items():
        for value in found.every(name):
            beside = name == "certificatefile" and any(
                f"{one.text}-cert.pub" == value.text for one in found.every("identityfile")
            )
            if value.text.lower() != "none" and not beside:
                raise UsageError(f"{value.place}: {name} is not supported: {fix}.")
    for value in found.every("canonicalizehostname"):
        if value.text.lower() in ("yes", "true", "always") and found.every("canonicaldomains"):
            raise UsageError(
                f"{value.place}: CanonicalizeHostname is not supported. Write HostName with the full name for"
                f" {printable(found.host)}, and CanonicalizeHostname no."
            )


@dataclass(frozen=True)
class _File:
    """Reads files of the user, or of the system, into settings."""

    settings: Settings
    home: Path
    folder: Path  # that relative paths of Include begin at
    own: bool  # the user's: others must not be able to write it

    def read(self, path: Path, depth: int, applies: bool) -> None:
        """Read a file and what it includes. `applies` is whether the block applies that includes it."""
        if depth > DEPTH:
            raise UsageError(f"{path}: Include is nested over {DEPTH} deep. Does a file include itself?")
        within = applies
        for number, line in enumerate(self._lines(path), 1):
            place = f"{path}:{number}"
            keyword, words = split(line, place)
            if not keyword:
                continue
            if keyword == "host":
                within = applies and self.settings.host_applies(words)
            elif keyword == "match":
                within = applies and self.settings.match_applies(Value(words, place))
            elif keyword == "include":
                for word in words:
                    self._include(word, place, depth, within)
            elif within and words:
                self.settings.set(keyword, Value(words, place))

    def _include(self, word: str, place: str, depth: int, applies: bool) -> None:
        pattern = self.folder / at_home(expanded(Value((word,), place), {"d": str(self.home)}), self.home)
        for name in sorted(glob.glob(str(pattern))):
            self.read(Path(name), depth + 1, applies)

    def _lines(self, path: Path) -> list[str]:
        """The lines; none where there is no such file. Bytes that are not UTF-8 are kept as they are."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if self.own and (status.st_mode & stat.S_IWOTH or status.st_uid not in (0, os.getuid())):
                    raise SecurityError(f"{path}: others can write this file. Run: chmod 600 {path}")
                data = file.read(LIMITS.toml_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return []
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) > LIMITS.toml_bytes:
            raise UsageError(f"{path}: is larger than {LIMITS.toml_bytes >> 20} MB, and no SSH configuration is")
        return data.decode("utf-8", "surrogateescape").split("\n")


# ----------------------------------------------------------------------------------------------------- pure rules


def listed(text: str, patterns: tuple[str, ...] | list[str]) -> bool:
    """Whether a list of patterns names a text: one of them fits, and none that begins with `!` does."""
    if any(pattern.startswith("!") and fits(text, pattern[1:]) for pattern in patterns):
        return False
    return any(not pattern.startswith("!") and fits(text, pattern) for pattern in patterns)


def fits(text: str, pattern: str) -> bool:
    """Whether a pattern of OpenSSH fits: `*` is any text, `?` one character."""
    rule = re.sub(r"\\\*(\\\*)*", ".*", re.escape(pattern)).replace(r"\?", ".")
    return re.fullmatch(rule, text, re.DOTALL) is not None


def at_home(text: str, home: Path) -> str:
    """A path in which a leading `~` is the user's home."""
    if text == "~" or text.startswith("~/"):
        return str(home) + text[1:]
    return os.path.expanduser(text) if text.startswith("~") else text


def expanded(value: Value, tokens: Mapping[str, str], word: str | None = None) -> str:
    """A value with its `%` tokens and `${VARIABLES}` replaced. Raises `UsageError` for an unknown one."""

    def replaced(match: re.Match[str]) -> str:
        letter, variable = match[1], match[2]
        found = os.environ.get(variable) if letter is None else {**tokens, "%": "%"}.get(letter)
        if found is None:
            raise UsageError(f"{value.place}: {printable(match[0])} is not known here. Write what it stands for.")
        return found

    return re.sub(r"%(.?)|\$\{(\w+)\}", replaced, value.text if word is None else word)


def split(line: str, place: str) -> tuple[str, tuple[str, ...]]:
    """The keyword of a line, in lower case, and its words. Quotes and backslashes are those of OpenSSH.

    Raises `UsageError` for a line that begins with no keyword: without it, the options below would belong to other hosts.
    """
    if not line.strip() or line.lstrip().startswith("#"):
        return "", ()
    match = re.match(r'\s*"?([A-Za-z0-9]+)"?(?:\s*=\s*|\s+|$)(.*)', line, re.DOTALL)
    if match is None:
        raise UsageError(f"{place}: {printable(line.split()[0], 40)} is no option of ssh. Fix the line.")
    words: list[str] = []
    rest, at = match[2], 0
    while at < len(rest):
        if rest[at].isspace():
            at += 1
        elif rest[at] == "#":
            break
        else:
            word, at = _word(rest, at, place)
            words.append(word)
    return match[1].lower(), tuple(words)


def _word(text: str, at: int, place: str) -> tuple[str, int]:
    """The word at a place, and where it ends."""
    word, quote = "", ""
    while at < len(text) and (quote or not text[at].isspace()):
        char, following = text[at], text[at + 1 : at + 2]
        if char == "\\" and following and (following in "\\\"'" or (following == " " and not quote)):
            word, at = word + following, at + 1
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        else:
            word += char
        at += 1
    if quote:
        raise UsageError(f"{place}: a quote has no end. Fix the line.")
    return word, at
