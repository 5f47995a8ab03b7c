r"""Are mount options read as the kernel and fuse-overlayfs read them, and refused in words?

What kernel overlayfs does with a lowerdir was tried with mount(2) on Linux 6.18; where pyoverlay differs, the
test says so.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoverlay.options import (
    MAXIMUM_LOWERS,
    MountOptions,
    OptionError,
    OverlayError,
    format_options,
    join_lowerdir,
    parse_options,
    split_lowerdir,
)


def parse(*texts: str, privileged: bool = True) -> MountOptions:
    return parse_options(texts, unknown=None, privileged=privileged)


# lowerdir


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a",)),
        ("a:b:c", ("a", "b", "c")),
        ("/a/b:../c:.", ("/a/b", "../c", ".")),
        (r"a\:b", ("a:b",)),
        (r"a\:b:c", ("a:b", "c")),
        (r"a\\b", ("a\\b",)),
        (r"a\b", ("ab",)),
        (r"a\,b", ("a,b",)),
        (r"a\\\:b", ("a\\:b",)),
        (r"a\\\\:b", ("a\\\\", "b")),
        (r"a\\", ("a\\",)),
        ("a\\", ("a",)),
        ('a"b:c', ('a"b', "c")),
        ("a\nb:\udcff", ("a\nb", "\udcff")),
        (r"\:", (":",)),
    ],
)
def test_lowerdir_as_the_kernel_parts_it(text: str, expected: tuple[str, ...]) -> None:
    assert split_lowerdir(text) == expected


def test_two_backslashes_before_a_colon_escape_it() -> None:
    # fuse-overlayfs's spelling; the kernel would part "a\" from "b" here.
    assert split_lowerdir(r"a\\:b") == ("a:b",)
    assert split_lowerdir(r"a\\/:b") == ("a\\/", "b")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        (":a", "begins with a colon"),
        ("a:", "ends with a colon"),
        (":", "begins with a colon"),
        ("a::b", "data-only"),
        ("a:::b", "data-only"),
        ("a:b::c", "data-only"),
    ],
)
def test_lowerdir_that_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        split_lowerdir(text)


def test_lowerdir_of_500_and_no_more() -> None:
    assert len(split_lowerdir(":".join(["l"] * MAXIMUM_LOWERS))) == 500
    with pytest.raises(OptionError, match="501 lower directories"):
        split_lowerdir(":".join(["l"] * 501))


paths = st.text(st.sampled_from("ab/:\\,\"' =\n\udcff\u00e9"), min_size=1, max_size=12)


def _with_slash(lowers: list[str]) -> tuple[str, ...]:
    """The one thing that isn't kept: a directory before another can't end in a single backslash."""
    kept = [path + "/" if path.endswith("\\") and not path.endswith("\\\\") else path for path in lowers[:-1]]
    return (*kept, lowers[-1])


@given(st.lists(paths, min_size=1, max_size=5))
def test_lowerdir_is_read_as_it_was_written(lowers: list[str]) -> None:
    assert split_lowerdir(join_lowerdir(lowers)) == _with_slash(lowers)


@given(st.text(st.sampled_from("ab\\:"), max_size=12))
def test_any_lowerdir_is_read_or_refused(text: str) -> None:
    try:
        lowers = split_lowerdir(text)
    except OptionError:
        return
    assert all(lowers)
    assert split_lowerdir(join_lowerdir(lowers)) == _with_slash(list(lowers))


def test_lowerdir_plus_appends_literally() -> None:
    assert parse(r"lowerdir+=a:b,lowerdir+=c\d").lowerdir == ("a:b", r"c\d")
    assert parse("lowerdir+=a,lowerdir=b:c").lowerdir == ("b", "c")
    with pytest.raises(OptionError, match=r"can't follow lowerdir="):
        parse("lowerdir=a,lowerdir+=b")
    with pytest.raises(OptionError, match="data-only"):
        parse("lowerdir+=a,datadir+=b")


# The option list


def test_commas_part_options_unless_escaped_or_quoted() -> None:
    options = parse(r'lowerdir=a\,b:c,,context="system_u:object_r:x_t:s0:c1,c2",upperdir=u\,\\p,workdir=w')
    assert (options.lowerdir, options.upperdir, options.workdir) == (("a,b", "c"), "u,\\p", "w")


def test_quotes_in_paths_are_characters() -> None:
    assert parse('lowerdir="a,ro').lowerdir == ('"a',)


def test_later_options_win() -> None:
    options = parse("lowerdir=a,ro,noexec,timeout=1", "rw", "exec,timeout=2,lowerdir=b:c")
    assert options == MountOptions(("b", "c"), timeout=2.0)


def test_root_and_users_have_different_defaults() -> None:
    assert parse("lowerdir=a") == MountOptions(("a",))
    assert parse("lowerdir=a", privileged=False) == MountOptions(
        ("a",), suid=False, dev=False, allow_other=False, userxattr=True, redirect_dir="nofollow"
    )


@pytest.mark.parametrize("privileged", [True, False])
def test_what_is_said_beats_the_defaults(privileged: bool) -> None:
    options = parse("lowerdir=a,suid,nodev,allow_other,nodefault_permissions", privileged=privileged)
    assert (options.suid, options.dev) == (True, False)
    assert (options.allow_other, options.default_permissions) == (True, False)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("ro", "read_only", True),
        ("rw", "read_only", False),
        ("nosuid", "suid", False),
        ("suid", "suid", True),
        ("nodev", "dev", False),
        ("dev", "dev", True),
        ("noexec", "exec", False),
        ("exec", "exec", True),
        ("noatime", "atime", False),
        ("atime", "atime", True),
        ("noacl", "acl", False),
        ("userxattr", "userxattr", True),
        ("volatile", "fsync", "volatile"),
        ("fsync=volatile", "fsync", "volatile"),
        ("fsync=0", "fsync", "volatile"),
        ("fsync=1", "fsync", "auto"),
        ("fsync=auto", "fsync", "auto"),
        ("fsync=strict", "fsync", "strict"),
        ("xino=off", "xino", "off"),
        ("xino=auto", "xino", "auto"),
        ("xino=on", "xino", "on"),
        ("redirect_dir=off", "redirect_dir", "follow"),
        ("redirect_dir=follow", "redirect_dir", "follow"),
        ("redirect_dir=nofollow", "redirect_dir", "nofollow"),
        ("timeout=0", "timeout", 0.0),
        ("timeout=0.5", "timeout", 0.5),
        ("timeout=1e9", "timeout", 1e9),
        ("fast_path=off", "fast_path", False),
        ("passthrough=off", "passthrough", "off"),
        ("passthrough=all", "passthrough", "all"),
        ("fast_path=on", "fast_path", True),
    ],
)
def test_each_option(text: str, field: str, value: object) -> None:
    assert getattr(parse(f"lowerdir=a,{text}"), field) == value


@pytest.mark.parametrize("text", ["index=off", "nfs_export=off", "metacopy=off", "verity=off", "uuid=null"])
@pytest.mark.parametrize("privileged", [True, False])
def test_features_that_are_off_change_nothing(text: str, privileged: bool) -> None:
    assert parse(f"lowerdir=a,{text}", privileged=privileged) == parse("lowerdir=a", privileged=privileged)


@pytest.mark.parametrize(
    "text",
    [
        "defaults",
        "_netdev",
        "nofail",
        "x-systemd.automount",
        "relatime",
        "user=me",
        "context=a_t",
        "noauto",
        "private",
    ],
)
def test_what_concerns_mount_8_is_ignored(text: str) -> None:
    assert parse(f"lowerdir=a,{text}") == MountOptions(("a",))


@pytest.mark.parametrize(
    "text", ["threaded=1", "static_nlink", "writeback=0", "fast_ino=1", "kernel_cache", "splice_read"]
)
def test_what_is_done_in_one_way_only_is_accepted(text: str) -> None:
    assert parse(f"lowerdir=a,{text}") == MountOptions(("a",))


@pytest.mark.parametrize("text", ["index=on", "nfs_export=on", "redirect_dir=on", "metacopy=on", "verity=on"])
def test_features_that_are_missing_are_refused_by_name(text: str) -> None:
    with pytest.raises(OptionError, match=f"option '{text}' is not supported: .*leave it out"):
        parse_options([f"lowerdir=a,{text}"], unknown=list[str]().append, privileged=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("verity=require", "verity=require' is not supported"),
        ("index=maybe", "index can only be off"),
        ("metacopy", "metacopy can only be off"),
        ("xino=maybe", "xino is one of off, auto, on"),
        ("xino", "xino is one of off, auto, on"),
        ("fsync=never", "fsync is one of auto, strict, volatile, 0, 1"),
        ("redirect_dir=maybe", "redirect_dir is one of off, nofollow, follow"),
        ("fast_path=1", "fast_path is one of on, off"),
        ("passthrough=on", "passthrough is one of auto, all, off"),
        ("timeout=soon", "timeout is a number of seconds"),
        ("timeout=-1", "timeout is a number of seconds"),
        ("timeout=nan", "timeout is a number of seconds"),
        ("timeout=inf", "timeout is a number of seconds"),
        ("timeout=", "timeout is a number of seconds"),
        ("timeout", "timeout is a number of seconds"),
        ("ro=1", "ro takes no value"),
        ("volatile=1", "volatile takes no value"),
        ("userxattr=on", "userxattr takes no value"),
        ("upperdir", "'upperdir' needs a path"),
        ("upperdir=", "'upperdir' needs a path"),
        ("workdir=", "'workdir' needs a path"),
        ("lowerdir=", "'lowerdir' needs a path"),
        ("upperdir=u", "upperdir 'u' needs a workdir"),
        ("lowerdir=a\0b", "NUL"),
        ("upperdir=a\0b,workdir=w", "NUL"),
        ("remount", "can't be remounted"),
        ("xattr_permissions", "xattr_permissions is one of 0, 1, 2"),
        ("xattr_permissions=3", "xattr_permissions is one of 0, 1, 2"),
        ("acl,xattr_permissions=2", "acl contradicts xattr_permissions"),
        ("uidmapping", "uidmapping is DISK:SHOWN:COUNT"),
        ("uidmapping=", "uidmapping is DISK:SHOWN:COUNT"),
        ("uidmapping=0:1000", "uidmapping is DISK:SHOWN:COUNT"),
        ("gidmapping=0:1000:1:5", "gidmapping is DISK:SHOWN:COUNT"),
        ("gidmapping=0:1000:-1", "gidmapping is DISK:SHOWN:COUNT"),
        ("gidmapping=0:1000:0", "holds no valid ids"),
        ("uidmapping=0:4294967290:10", "holds no valid ids"),
        ("uidmapping=0:1000:10:9:2000:10", "ranges overlap"),
        ("uidmapping=0:1000:10:10:1009:10", "ranges overlap"),
        ("squash_to_uid", "squash_to_uid is a number from 0"),
        ("squash_to_gid=-1", "squash_to_gid is a number from 0"),
        ("squash_to_gid=4294967295", "squash_to_gid is a number from 0"),
        ("squash_to_root=1", "squash_to_root takes no value"),
        ("userxattr,redirect_dir=follow", "redirect_dir=follow contradicts userxattr;"),
        ("redirect_dir=follow,userxattr", "redirect_dir=follow contradicts userxattr;"),
    ],
)
@pytest.mark.parametrize("helper", [True, False])
def test_wrong_options_are_refused(text: str, complaint: str, helper: bool) -> None:
    unknown = list[str]().append if helper else None
    with pytest.raises(OptionError, match=complaint):
        parse_options([f"lowerdir=a,{text}"], unknown=unknown, privileged=True)


def test_a_user_cannot_follow_redirects() -> None:
    with pytest.raises(OptionError, match=r"contradicts userxattr, which holds for everyone but root"):
        parse("lowerdir=a,redirect_dir=follow", privileged=False)
    assert parse("lowerdir=a,redirect_dir=off", privileged=False).redirect_dir == "nofollow"


def test_errors_are_ours() -> None:
    assert issubclass(OptionError, OverlayError)


def test_unknown_options_are_refused_or_reported() -> None:
    texts = ["lowerdir=a,weird,metacopies=on", "ro,plugins=p.so"]
    with pytest.raises(OptionError, match=r"option 'weird' is unknown"):
        parse(*texts)
    heard: list[str] = []
    options = parse_options(texts, unknown=heard.append, privileged=True)
    assert heard == ["weird", "metacopies=on", "plugins=p.so"]
    assert options == MountOptions(("a",), read_only=True)


# The directories


@pytest.mark.parametrize("texts", [[], [""], ["ro"], ["upperdir=u,workdir=w"]])
def test_a_lower_is_needed(texts: list[str]) -> None:
    with pytest.raises(OptionError, match="no lower directory"):
        parse(*texts)


def test_a_workdir_without_an_upper_is_ignored() -> None:
    assert parse("lowerdir=a,workdir=w") == MountOptions(("a",))


def test_writable() -> None:
    assert parse("lowerdir=a,upperdir=u,workdir=w").writable
    assert not parse("lowerdir=a,upperdir=u,workdir=w,ro").writable
    assert not parse("lowerdir=a").writable


@pytest.mark.parametrize(("fsync", "volatile"), [("auto", False), ("strict", False), ("volatile", True)])
def test_volatile(fsync: str, volatile: bool) -> None:
    assert parse(f"lowerdir=a,fsync={fsync}").volatile is volatile


def test_directories_given_apart_are_literal_and_win() -> None:
    options = parse_options(
        ["lowerdir=x,upperdir=y,workdir=z"],
        unknown=None,
        privileged=True,
        lower=[r"a:b\:", "c,d"],
        upper=r"u\,p",
        work="w:",
    )
    assert (options.lowerdir, options.upperdir, options.workdir) == ((r"a:b\:", "c,d"), r"u\,p", "w:")


@pytest.mark.parametrize(
    ("lower", "upper", "work", "complaint"),
    [
        ([], None, None, "no lower directory"),
        (["a", ""], None, None, "a lower directory is empty"),
        (["a"] * 501, None, None, "501 lower directories"),
        (["a\0"], None, None, "NUL"),
        (["a"], "", "w", "upperdir is empty"),
        (["a"], "u", "", "workdir is empty"),
        (["a"], "u", None, "upperdir 'u' needs a workdir"),
        (["a"], "u\0", "w", "NUL"),
    ],
)
def test_directories_given_apart_are_checked(
    lower: list[str], upper: str | None, work: str | None, complaint: str
) -> None:
    with pytest.raises(OptionError, match=complaint):
        parse_options([], unknown=None, privileged=True, lower=lower, upper=upper, work=work)


# Writing options


@st.composite
def id_ranges(draw: st.DrawFn) -> tuple[tuple[int, int, int], ...]:
    counts = draw(st.lists(st.integers(1, 100_000), min_size=1, max_size=3))
    return tuple((300_000 * place, 1_000_000 - 300_000 * place, count) for place, count in enumerate(counts))


@st.composite
def mount_options(draw: st.DrawFn) -> MountOptions:
    upper: str | None = draw(st.none() | paths)
    userxattr: bool = draw(st.booleans())
    records: Literal[0, 1, 2] = draw(st.sampled_from([0, 1, 2]))
    flags = {name: draw(st.booleans()) for name in ("read_only", "suid", "dev", "exec", "atime", "acl")}
    return MountOptions(
        lowerdir=_with_slash(draw(st.lists(paths, min_size=1, max_size=4))),
        upperdir=upper,
        workdir=None if upper is None else draw(paths),
        **flags | ({"acl": False} if records else {}),
        xattr_permissions=records,
        allow_other=draw(st.booleans()),
        default_permissions=draw(st.booleans()),
        userxattr=userxattr,
        fsync=draw(st.sampled_from(["auto", "strict", "volatile"])),
        xino=draw(st.sampled_from(["off", "auto", "on"])),
        redirect_dir="nofollow" if userxattr else draw(st.sampled_from(["nofollow", "follow"])),
        timeout=draw(st.floats(0, 1e12)),
        fast_path=draw(st.booleans()),
        passthrough=draw(st.sampled_from(["auto", "all", "off"])),
        uidmapping=draw(st.just(()) | id_ranges()),
        gidmapping=draw(st.just(()) | id_ranges()),
        squash_to_root=draw(st.booleans()),
        squash_to_uid=draw(st.none() | st.integers(0, 2**32 - 2)),
        squash_to_gid=draw(st.none() | st.integers(0, 2**32 - 2)),
    )


@given(mount_options())
def test_options_are_read_as_they_were_written(options: MountOptions) -> None:
    text = format_options(options)
    assert parse(text) == options
    a_users = dataclasses.replace(options, userxattr=True, redirect_dir="nofollow")
    assert parse(text, privileged=False) == a_users


def test_engines_id_maps_are_read() -> None:
    options = parse("lowerdir=a,uidmapping=0:1:1000:1000:0:1:1001:1001:64536,gidmapping=0:7:1")
    assert options.uidmapping == ((0, 1, 1000), (1000, 0, 1), (1001, 1001, 64536))
    assert parse("lowerdir=a,uidmapping=:0:7:1").uidmapping == ((0, 7, 1),), "podman's way of writing it"
    assert options.gidmapping == ((0, 7, 1),)


def test_owners_in_attributes_leave_no_acls() -> None:
    options = parse("lowerdir=a,xattr_permissions=2")
    assert (options.xattr_permissions, options.acl) == (2, False)
    assert parse("lowerdir=a,acl,xattr_permissions=0").acl


def test_defaults_are_not_written_out() -> None:
    assert format_options(MountOptions(("a", "b:c"), "u", "w")) == (
        r"lowerdir=a:b\:c,upperdir=u,workdir=w,suid,dev,allow_other"
    )
