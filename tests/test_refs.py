"""The grammar of references, as a table; and that no secret of a URL is ever shown."""

from __future__ import annotations

import shlex
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve import refs
from segserve.errors import InvalidRef
from segserve.refs import ExecutorRef, Pin, RepoKind, parse

SHA = "0123456789abcdef0123456789abcdef01234567"
GITHUB = "https://github.com/o/r"

# text -> repo, kind, rev, subdir, entry
REMOTE = [
    (GITHUB, GITHUB, RepoKind.HTTPS, None, "", "main"),
    (f"{GITHUB}/", GITHUB, RepoKind.HTTPS, None, "", "main"),
    (f"{GITHUB}.git", f"{GITHUB}.git", RepoKind.HTTPS, None, "", "main"),
    ("HTTPS://GitHub.com:443/o/r", GITHUB, RepoKind.HTTPS, None, "", "main"),
    ("https://h:8443/o/r", "https://h:8443/o/r", RepoKind.HTTPS, None, "", "main"),
    ("https://[::1]:8443/o/r@v1", "https://[::1]:8443/o/r", RepoKind.HTTPS, "v1", "", "main"),
    (f"{GITHUB}?tab=readme", GITHUB, RepoKind.HTTPS, None, "", "main"),
    (f"{GITHUB}@v1.2", GITHUB, RepoKind.HTTPS, "v1.2", "", "main"),
    (f"{GITHUB}.git@{SHA}#train", f"{GITHUB}.git", RepoKind.HTTPS, SHA, "", "train"),
    (f"{GITHUB}#", GITHUB, RepoKind.HTTPS, None, "", "main"),
    (f"{GITHUB}#info", GITHUB, RepoKind.HTTPS, None, "", "info"),
    (f"{GITHUB}#a/b", GITHUB, RepoKind.HTTPS, None, "a/b", "main"),
    (f"{GITHUB}#a/", GITHUB, RepoKind.HTTPS, None, "a", "main"),
    (f"{GITHUB}#./a//b/", GITHUB, RepoKind.HTTPS, None, "a/b", "main"),
    (f"{GITHUB}#a:", GITHUB, RepoKind.HTTPS, None, "a", "main"),
    (f"{GITHUB}#a/b:train", GITHUB, RepoKind.HTTPS, None, "a/b", "train"),
    (f"{GITHUB}#:train", GITHUB, RepoKind.HTTPS, None, "", "train"),
    (f"{GITHUB}@v1#e@2", GITHUB, RepoKind.HTTPS, "v1", "", "e@2"),
    (f"{GITHUB}@v1#a#b", GITHUB, RepoKind.HTTPS, "v1", "", "a#b"),
    ("https://h/@scope/r", "https://h/@scope/r", RepoKind.HTTPS, None, "", "main"),
    # ssh
    ("ssh://git@Host.org/o/r.git", "ssh://git@host.org/o/r.git", RepoKind.SSH, None, "", "main"),
    ("ssh://git@h:22/o/r@v1", "ssh://git@h/o/r", RepoKind.SSH, "v1", "", "main"),
    ("ssh://h:2222/o/r#a:", "ssh://h:2222/o/r", RepoKind.SSH, None, "a", "main"),
    ("ssh://git:pw@h/o/r", "ssh://git@h/o/r", RepoKind.SSH, None, "", "main"),
    ("git@Host:o/r", "git@host:o/r", RepoKind.SSH, None, "", "main"),
    ("git@h:o/r.git@v1#x", "git@h:o/r.git", RepoKind.SSH, "v1", "", "x"),
    ("git@h:r@v1", "git@h:r", RepoKind.SSH, "v1", "", "main"),
    ("h:r", "h:r", RepoKind.SSH, None, "", "main"),
    # a file URL is a repository, whether the folder exists is git's business
    ("file:///srv/r.git@v1", "file:///srv/r.git", RepoKind.FILE, "v1", "", "main"),
    ("file://localhost/srv/r", "file:///srv/r", RepoKind.FILE, None, "", "main"),
    ("cellpose", "cellpose", RepoKind.NAME, None, "", "main"),
    ("cellpose@v2#train", "cellpose", RepoKind.NAME, "v2", "", "train"),
]
# from the address line of a browser
PASTED = [
    (f"{GITHUB}/tree/dev", GITHUB, RepoKind.HTTPS, "dev", "", "main"),
    (f"{GITHUB}/tree/feature/x/sub/", GITHUB, RepoKind.HTTPS, "feature/x/sub", "", "main"),
    (f"{GITHUB}/tree/dev#train", GITHUB, RepoKind.HTTPS, "dev", "", "train"),
    (f"{GITHUB}/tree/main/my%20dir/.github", GITHUB, RepoKind.HTTPS, "main/my dir/.github", "", "main"),
    (f"{GITHUB}/commit/{SHA}", GITHUB, RepoKind.HTTPS, SHA, "", "main"),
    ("https://github.com/o/tree/tree/dev", "https://github.com/o/tree", RepoKind.HTTPS, "dev", "", "main"),
    ("https://gl/g/tree/r/-/tree/dev?ref_type=heads", "https://gl/g/tree/r", RepoKind.HTTPS, "dev", "", "main"),
    ("https://gl/g/s/r/-/tree/dev/a", "https://gl/g/s/r", RepoKind.HTTPS, "dev/a", "", "main"),
]


@pytest.mark.parametrize(("text", "repo", "kind", "rev", "subdir", "entry"), REMOTE + PASTED)
def test_remote(text: str, repo: str, kind: RepoKind, rev: str | None, subdir: str, entry: str) -> None:
    ref = parse(text)
    assert (ref.repo, ref.kind, ref.rev, ref.subdir, ref.entry) == (repo, kind, rev, subdir, entry)
    assert ref.tree == (
        "/tree/" in text.partition("#")[0].replace("o/tree", "").replace("g/tree", "") or "/commit/" in text
    )
    assert parse(str(ref)) == ref


HOSTILE = [
    "",
    "#main",
    "-o",
    "--upload-pack=touch x",
    "ext::sh -c touch% x",
    "fd::17",
    "foo::https://h/r",
    "http://h/o/r",
    "git://h/o/r",
    "ftp://h/o/r",
    "javascript://h/o/r",
    "https://",
    "https:///o/r",
    "https://h",
    "https://h/",
    "https://-oProxyCommand=x/r",
    "https://h:port/r",
    "https://[::1/r",
    "ssh://-oProxyCommand=x/r",
    "ssh://-oProxyCommand=x@h/r",
    "-oProxyCommand=x@h:r",
    "git@h:-r",
    "git@-h:r",
    "file://otherhost/srv/r",
    "file:///",
    "https://h/o/r\n",
    "https://h/o/r\x00",
    "https://h/o/r#a\x1b[2J",
    "https://h/o/r@",
    "https://h/o/r@-v",
    "https://h/o/r@--upload-pack=x",
    "https://h/o/r@a..b",
    "https://h/o/r@v1^",
    "https://h/o/r@v1~1",
    "https://h/o/r@x.lock",
    "https://h/o/r@.hidden",
    "https://h/o/r@a b",
    "https://h/o/r@" + "a" * 300,
    "https://h/o/r#../..:",
    "https://h/o/r#a/../../b",
    "https://h/o/r#/etc/",
    "https://h/o/r#a\\..\\b:",
    "https://h/o/r#a/.git:",
    "https://h/o/r/tree/main/../..",
    "https://h/o/r/tree/-x",
    "https://h/o/r/tree/a%0Ab",
    "https://u:p%0Ahost=evil@h/o/r",
    "./no-such-folder",
    "~nobody-of-that-name/x",
    "no/such/folder",
    "/" + "a" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRef):
        parse(text)


@pytest.mark.parametrize(
    "rev", ["", "-x", "--all", "a b", "a\nb", "a..b", "HEAD~1", ":/fix", "/a", "a/", "a//b", "a/.b", "@"]
)
def test_hostile_revision_is_refused(rev: str) -> None:
    with pytest.raises(InvalidRef):
        parse(GITHUB, rev=rev)


@pytest.mark.parametrize(
    "text",
    ["https://h/o/r@feature/x", "https://h/o/r.git@v1/", "git@h:o/r@feature/x", "ssh://g@h/o/r@f/x", "./repo@f/x"],
)
def test_branch_with_slash_is_told_to_use_the_option(text: str) -> None:
    with pytest.raises(InvalidRef) as caught:
        parse(text)
    assert "--rev" in caught.value.hint


def test_options_say_it_without_parsing() -> None:
    ref = parse(GITHUB, rev="feature/x", entry="a/b")
    assert (ref.rev, ref.entry, ref.tree) == ("feature/x", "a/b", False)
    assert parse(f"{GITHUB}#sub:", entry="train") == ExecutorRef(GITHUB, RepoKind.HTTPS, None, "sub", "train")
    assert parse(f"{GITHUB}#train", entry="train").entry == "train"
    assert parse(f"{GITHUB}/tree/dev", rev="dev").tree
    # With --rev an '@' is a letter of the path.
    assert parse("https://h/o/r@home", rev="v1").repo == "https://h/o/r@home"


@pytest.mark.parametrize(
    ("text", "rev", "entry"),
    [(f"{GITHUB}#a", None, "b"), (f"{GITHUB}/tree/a", "b", None), (f"{GITHUB}/tree/a@b", None, None)],
)
def test_contradictions_are_refused(text: str, rev: str | None, entry: str | None) -> None:
    with pytest.raises(InvalidRef, match=r"."):
        parse(text, rev=rev, entry=entry)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("repo", "my@dir", "sp ace"):
        (tmp_path / name / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    repo = str(tmp_path / "repo")
    for text in ("./repo", "repo/", "repo/.", "./repo/in/..", repo, "~/repo"):
        assert parse(text) == ExecutorRef(repo, RepoKind.PATH)
    assert parse("./repo@v1#sub/:e") == ExecutorRef(repo, RepoKind.PATH, "v1", "sub", "e")
    assert parse(".@v1") == ExecutorRef(str(tmp_path), RepoKind.PATH, "v1")
    assert parse("./my@dir") == ExecutorRef(str(tmp_path / "my@dir"), RepoKind.PATH)
    assert parse("./my@dir@v1").rev == "v1"
    assert parse("sp ace").repo == str(tmp_path / "sp ace")
    assert parse("my@dir").kind is RepoKind.PATH
    assert parse("repo").kind is RepoKind.NAME  # a folder is said with ./
    for text in ("./repo@v1#sub/:e", "./my@dir", "./my@dir@v1", "sp ace"):
        assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://USER99:S3CRET99@h/o/r",
        "https://S3CRET99@h/o/r",
        "https://USER99:S3CRET%2F99@h/o/r@v1#e",
        "https://USER99:S3CRET99@h/o/r/tree/dev",
    ],
)
def test_credentials_are_taken_out(text: str) -> None:
    ref = parse(text)
    assert ref.repo == "https://h/o/r"
    assert ref.credentials is not None
    assert "S3CRET" in ref.credentials.user + ref.credentials.secret
    shown = f"{ref} {ref!r} {ref.credentials!r} {ref.name}"
    assert "S3CRET" not in shown
    assert "USER99" not in shown


def test_credentials_are_decoded() -> None:
    ref = parse("https://us%40er:p%2Fw@h/o/r")
    assert ref.credentials is not None
    assert (ref.credentials.user, ref.credentials.secret) == ("us@er", "p/w")


@pytest.mark.parametrize(
    "text",
    [
        "https://S3CRET99@h",
        "https://u:S3CRET99@h",
        "https://u:S3CRET99@h/",
        "https://u:S3C/RET99@h/o/r",
        "https://S3C/RET99@h/o/r",
        "https://u:p@S3CRET99@h/o/r@-x",
        "https://u:S3CRET99@h:port/o/r",
        "http://u:S3CRET99@h/o/r",
        "https://u:S3CRET99@h/o/r@a..b",
        "https://u:S3CRET99@h/o/r#..:",
        "https://u:S3CRET99@h/o/r@f/x",
        "file://u:S3CRET99@h/o/r",
    ],
)
def test_errors_do_not_show_credentials(text: str) -> None:
    with pytest.raises(InvalidRef) as caught:
        parse(text)
    shown = "".join(traceback.format_exception_only(caught.value)) + caught.value.hint
    assert "S3C" not in shown
    assert "RET99" not in shown


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (GITHUB, f"{GITHUB}.git"),
        (GITHUB, "https://GITHUB.com:443/o/r/"),
        ("git@h:o/r", "git@H:o/r.git"),
        ("ssh://git@h/o/r", "ssh://git@H:22/o/r.git/"),
        ("file:///srv/r", "file:///srv/r/"),
    ],
)
def test_canonical_is_one_text_for_one_repository(one: str, other: str) -> None:
    assert refs.canonical(one) == refs.canonical(other)


def test_canonical_keeps_apart_what_is_different() -> None:
    different = [GITHUB, "https://github.com/o/R", "https://h/o/r", "ssh://a@h/o/r", "ssh://b@h/o/r", "https://h:1/o/r"]
    different += ["file:///srv/r", "file:///srv/r.git", "git@h:o/r"]
    assert len({refs.canonical(repo) for repo in different}) == len(different)


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        (f"{GITHUB}.git", f"{GITHUB}.git"),
        ("https://user:token@github.com/o/r", GITHUB),
        ("git@h:o/r.git", "git@h:o/r.git"),
        ("ssh://git@h/o/r", "ssh://git@h/o/r"),
        ("/srv/r", ""),
        ("../r", ""),
        ("file:///srv/r", ""),
        ("http://h/o/r", ""),
        ("ext::sh -c x", ""),
        ("--upload-pack=x", ""),
        ("https://h/o/r\nx", ""),
        ("", ""),
    ],
)
def test_remote_url(origin: str, url: str) -> None:
    assert refs.remote_url(origin) == url


def test_pin_needs_a_full_id() -> None:
    assert str(Pin(GITHUB, SHA, "a")) == f"{GITHUB}@{SHA}#a:"
    with pytest.raises(ValueError, match="full commit id"):
        Pin(GITHUB, SHA[:8])


@pytest.mark.parametrize(("text", "name"), [(f"{GITHUB}.git", "r"), (f"{GITHUB}#a/b c:", "b-c"), ("git@h:x.git", "x")])
def test_name(text: str, name: str) -> None:
    assert parse(text).name == name


_WORD = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}[A-Za-z0-9_]", fullmatch=True)
_PATH = st.lists(_WORD, min_size=2, max_size=4).map("/".join)
_REPO = st.one_of(
    _PATH.map("https://h.org/".__add__),
    _PATH.map("ssh://git@h.org:2222/".__add__),
    _PATH.map("git@h.org:".__add__),
    _PATH.map("file:///srv/".__add__),
    _WORD.filter(lambda word: refs.SHORT_NAME.fullmatch(word) is not None),
)


@given(
    repo=_REPO,
    rev=st.none() | _WORD | _PATH,
    subdir=st.just("") | _PATH | _WORD,
    entry=st.none() | _WORD | st.from_regex(r"[a-z@# ]{1,8}", fullmatch=True),
)
def test_str_parses_back(repo: str, rev: str | None, subdir: str, entry: str | None) -> None:
    try:
        ref = parse(f"{repo}#{subdir}:", rev=rev, entry=entry)
    except InvalidRef:
        return  # a word that no revision can be (x.lock), a path that contradicts (/tree/)
    text, _, option = str(ref).partition(" --rev ")
    again = parse(text, rev=option or None)
    assert again == ref
    assert parse(*shlex.split(shlex.quote(text)), rev=option or None) == ref


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_is_refused(text: str) -> None:
    try:
        ref = parse(text)
    except InvalidRef:
        return
    assert ref.kind is RepoKind.PATH or not ref.repo.startswith("-")
    assert ".." not in Path(ref.subdir).parts
