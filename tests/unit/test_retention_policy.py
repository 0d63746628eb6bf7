"""The policy file: what it may say, what is wrong with one, and what its patterns and versions mean."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kubeadm_registry.config import durations
from kubeadm_registry.custom_resources.schema import structural
from kubeadm_registry.errors import ConfigError
from kubeadm_registry.retention import globs, policy, versions

HEAD = "apiVersion: kubeadm-registry.dev/v1alpha1\nkind: RegistryPolicy\n"


def problems(spec: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        policy.parse(f"{HEAD}spec:\n{spec}", "policy.yaml")
    assert caught.value.hint == "see docs/retention.md for all keys and for examples"
    return [str(problem) for problem in caught.value.problems]


def test_the_default_keeps_everything_and_asks() -> None:
    spec = policy.parse(HEAD, "policy.yaml").spec
    assert spec.rules == ()
    assert spec.untagged.after is None
    assert spec.sets == ("bundle", "kubeadm")
    assert (spec.grace, spec.workload_grace, spec.trash.window) == ("24h", "7d", "7d")
    assert (spec.maximum_share, spec.approval) == (20, "Required")


def test_what_an_api_server_adds_is_passed_over() -> None:
    text = HEAD + "metadata: {name: x, uid: y, resourceVersion: '1'}\nstatus: {conditions: []}\n"
    assert policy.parse(text, "x").metadata.name == "x"


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy.SMALLEST)
    assert policy.load(path).spec.rules[0].keep.newest == 10
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: no such file or directory") as caught:
        policy.load(tmp_path / "none.yaml")
    assert caught.value.code == "ConfigUnreadable"


def test_every_problem_is_told_by_its_path() -> None:
    assert problems("""
  rules:
    - {name: A_b, repositories: ['team/*'], keep: {newst: 3}}
    - {name: b, repositories: [], keep: {within: 3w, newest: 0, pulled_within: 1d}}
    - {name: c, repositories: ['team/app:v1', 'a/b**', ''], keep: {tags: ['v1/*'], semver: {newest: 3, of: minor}}}
    - {name: d, repositories: ['*']}
  sets: [bundles]
  maximumShare: 101
  approval: none
""") == [
        "spec.rules[0].name: must be a DNS label: lower-case letters, digits and dashes, at most 63 characters "
        "(RFC 1123) (it is 'A_b')",
        "spec.rules[0].keep.newst: unknown key, did you mean newest?",
        "spec.rules[1].repositories: must have at least 1 item (it has 0)",
        "spec.rules[1].keep.newest: must be at least 1 (it is 0)",
        "spec.rules[1].keep.within: must be a duration in days, hours or minutes, such as 90d, 12h or 30m (it is '3w')",
        "spec.rules[1].keep.pulled_within: unknown key, did you mean pulledWithin?",
        "spec.rules[2].repositories[0]: must be a pattern of repositories without a tag, such as "
        '"registry.k8s.io/**" or "team/*" (it is \'team/app:v1\')',
        "spec.rules[2].repositories[1]: must have ** as a whole path component, such as team/** (it is 'a/b**')",
        "spec.rules[2].repositories[2]: must be a pattern of repositories without a tag, such as "
        '"registry.k8s.io/**" or "team/*" (it is \'\')',
        'spec.rules[2].keep.tags[0]: must be a pattern of tags, such as "v*" or "release-[0-9]*" (it is \'v1/*\')',
        "spec.rules[2].keep.semver.of: unknown key; known keys: newest, ofEach",
        "spec.rules[3].keep: is missing",
        "spec.sets[0]: must be 'bundle' or 'kubeadm' (it is 'bundles')",
        "spec.maximumShare: must be at most 100 (it is 101)",
        "spec.approval: must be 'Required' or 'Automatic' (it is 'none')",
    ]


def test_a_rule_that_decides_for_no_repository_is_told() -> None:
    by = policy.parse(
        f"""{HEAD}spec:
  rules:
    - {{name: all, repositories: ['*/**'], keep: {{newest: 1}}}}
    - {{name: later, repositories: ['team/*'], keep: {{newest: 2}}}}
    - {{name: one-part, repositories: ['*', a, b, c], keep: {{newest: 3}}}}
""",
        "policy.yaml",
    )
    later = "the rule later decides for no repository: team/*"
    assert by.spec.idle(["team/app", "web"]) == [later]
    assert by.spec.idle(["team/app"]) == [later, "the rule one-part decides for no repository: *, a, b"]
    assert len(by.spec.idle([])) == 3


@pytest.mark.parametrize("text", ["{}", "{all: false}", "{tags: []}"])
def test_a_rule_that_keeps_nothing_is_refused(text: str) -> None:
    """It would delete everything."""
    assert problems(f"  rules: [{{name: a, repositories: ['*'], keep: {text}}}]\n") == [
        "spec.rules[0].keep: must say what to keep, such as newest or within; nothing would be kept"
    ]


@pytest.mark.parametrize("key", ["newest", "within", "pulledWithin", "tags", "semver"])
def test_a_part_of_keep_that_has_no_value_is_refused(key: str) -> None:
    """The others alone would keep less than was meant."""
    other = "within: 1d" if key == "newest" else "newest: 3"
    rule = f"{{name: a, repositories: ['*'], keep: {{{other}, {key}: }}}}"
    assert problems(f"  rules: [{rule}]\n") == [f"spec.rules[0].keep.{key}: has no value"]


@pytest.mark.parametrize("glob", ["v[", "v]", "[]", "!v*"])
def test_brackets_are_explained_where_they_are_wrong(glob: str) -> None:
    assert problems(f"  rules: [{{name: a, repositories: ['*'], keep: {{tags: ['{glob}']}}}}]\n") == [
        "spec.rules[0].keep.tags[0]: must close each [ with something in it, and have ] and ! only there, as in [!0-9] "
        f"(it is '{glob}')"
    ]


def test_names_of_rules_are_unique() -> None:
    one = "{name: a, repositories: ['*'], keep: {all: true}}"
    assert problems(f"  rules: [{one}, {one}]\n") == ["spec.rules[1].name: a is used twice"]


def test_a_policy_is_frozen() -> None:
    with pytest.raises(ValidationError):
        policy.parse(HEAD, "x").spec.grace = "1m"  # type: ignore[misc]


def test_the_first_rule_that_matches_decides() -> None:
    spec = policy.parse(
        HEAD + "spec:\n  rules:\n  - {name: a, repositories: [team/a, team/b*], keep: {all: true}}\n"
        "  - {name: b, repositories: ['team/*', 'host:5000/**'], keep: {newest: 1}}\n",
        "x",
    ).spec
    found = {name: rule.name if (rule := spec.rule_of(name)) else None
             for name in ("team/a", "team/bc", "team/c", "team/c/d", "host_5000/x/y", "other")}  # fmt: skip
    assert found == {
        "team/a": "a",
        "team/bc": "a",
        "team/c": "b",
        "team/c/d": None,
        "host_5000/x/y": "b",
        "other": None,
    }


@pytest.mark.parametrize(("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("30m", 1800)])
def test_durations(text: str, seconds: int) -> None:
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize("text", ["0d", "1", "d", "1.5h", "-1d", "1d12h", "100000d", "1w", " 1d", "1D", "१d"])
def test_what_is_not_a_duration(text: str) -> None:
    assert len(problems(f"  grace: '{text}'\n")) == 1


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("registry.k8s.io/**", "registry.k8s.io/pause registry.k8s.io/a/b", "registry.k8s.io registryxk8s.io/a"),
        ("team/*", "team/a team/a.b-c", "team/a/b team xteam/a"),
        ("**", "a a/b/c", ""),
        ("**/nginx", "nginx a/nginx a/b/nginx", "xnginx a/nginxx"),
        ("a/**/z", "a/z a/b/z a/b/c/z", "az a/bz"),
        ("host:5000/x", "host_5000/x", "host/x"),
        ("team/*-ci", "team/a-ci team/-ci team/-ci-ci", "team/ci team/a-cix"),
        ("a*b*c", "abc axbxc abbcc", "ab/c acb"),
        ("a?c", "abc", "ac a/c abbc"),
        ("a[0-9]", "a0 a9", "ax a10"),
        ("a[!0-9]", "ax", "a0 a/"),
    ],
)
def test_patterns_of_repositories(glob: str, yes: str, no: str) -> None:
    pattern = globs.repository(glob)
    assert all(pattern.match(name) for name in yes.split())
    assert not any(pattern.match(name) for name in no.split())


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [("v*", "v1 v", "1 V1"), ("1.36.*", "1.36.3", "1.363 1x36.3"), ("*-SNAPSHOT", "1-SNAPSHOT", "1-snapshot"),
     ("*", "anything", ""), ("v[0-9]*", "v1 v1.2", "vnext")],
)  # fmt: skip
def test_patterns_of_tags(glob: str, yes: str, no: str) -> None:
    pattern = globs.tag(glob)
    assert all(pattern.match(name) for name in yes.split())
    assert not any(pattern.match(name) for name in no.split())


@pytest.mark.parametrize(
    "glob", ["", "/a", "a/", "a//b", "a:b", "a/b:c", "a***", "A", "a b", "a[", "a[]", "a[z-a]", "**/**/**", "a" * 256]
)
def test_what_is_not_a_pattern_of_repositories(glob: str) -> None:
    with pytest.raises(ValueError, match="must "):
        globs.repository(glob)


@pytest.mark.parametrize("glob", ["", "a/b", "**", "a b", "[", "a]", "[z-a]", "a" * 129, "a:b", "a\n"])
def test_what_is_not_a_pattern_of_tags(glob: str) -> None:
    with pytest.raises(ValueError, match="must "):
        globs.tag(glob)


def test_no_pattern_takes_long() -> None:
    begin = time.process_time()
    assert not globs.tag("*a" * 63 + "b").match("a" * 128)
    assert not globs.repository("**/*a*a*a*a*a*a/**/*b").match("/".join(["a" * 20] * 12))
    assert time.process_time() - begin < 0.5


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_a_pattern_matches_what_a_slow_one_matches(glob: str, text: str) -> None:
    def slow(glob: str, text: str) -> bool:
        if not glob:
            return not text
        if glob[0] == "*":
            return slow(glob[1:], text) or (bool(text) and slow(glob, text[1:]))
        return bool(text) and glob[0] in ("?", text[0]) and slow(glob[1:], text[1:])

    if glob and "**" not in glob:
        assert bool(globs.tag(glob).match(text)) == slow(glob, text)


TAGS = "v1.2.3 1.2.3-alpine 1.2.2 1.2.1 1.2.4-rc.1 1.1.9 1.1.8 2.0.0-rc.1 2.0.0-rc.2 1.2 2 1 latest 20240101 1.02.3"


@pytest.mark.parametrize(
    ("count", "level", "gone"),
    [
        (1, "minor", "1.2.2 1.2.1 1.1.8"),
        (2, "minor", "1.2.1"),
        (1, "major", "1.2.2 1.2.1 1.1.9 1.1.8"),
        (4, "major", "1.1.8"),
        (1, "patch", "1.2.3-alpine 2.0.0-rc.1"),
    ],
)
def test_newest_versions(count: int, level: versions.Level, gone: str) -> None:
    """A release counts, its variants do not; a part of a version moves; what is no version is not for this rule."""
    kept = set(TAGS.split()) - {"latest", "20240101", "1.02.3"} - set(gone.split())
    assert versions.newest(TAGS.split(), count, level) == kept


def test_what_the_page_calls_no_version_is_none() -> None:
    others = {"latest", "nightly", "1.3", "1.4-alpine", "V1.4.2", "2026.01.15"}
    assert versions.newest({*others, "1.4.2", "1.4", "v1"}, 1, "minor") == {"1.4.2", "1.4", "v1"}


def test_the_order_of_versions_is_that_of_semver_org() -> None:
    """The example of section 11."""
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
               "1.0.0-rc.1", "1.0.0", "2.0.0", "2.1.0", "2.1.1"]  # fmt: skip
    keys = [versions.key(tag) or () for tag in ordered]
    assert keys == sorted(set(keys))
    assert versions.key("1.0.0_build.5") == versions.key("v1.0.0")


def test_the_numbers_of_a_version_may_be_of_any_length() -> None:
    """CI often counts patches by the time: such a version would be of no rule, and go."""
    tags = ["1.0.202601311200", "1.0.20260131120001", "v1.0.20260201093000", "1.0.7", "1.0"]
    assert versions.newest(tags, 2, "minor") == {"v1.0.20260201093000", "1.0.20260131120001", "1.0"}
    assert versions.key(f"1.0.{'9' * 124}") is not None
    assert versions.key(f"1.0.0-{'9' * 5000}") is None, "that is no tag"


def parts(schema: dict[str, Any], path: str = "spec") -> Iterator[tuple[str, dict[str, Any]]]:
    """*schema* and all in it, by path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from parts(part, f"{path}.{name}")
    if "items" in schema:
        yield from parts(schema["items"], f"{path}[]")


def test_the_schema_can_be_that_of_a_custom_resource() -> None:
    """Structural; every list, text and number has a bound, of which API servers estimate the cost of rules."""
    found = dict(parts(structural(policy.RegistryPolicy, "spec")))
    for path, part in found.items():
        assert part["type"] != "array" or "maxItems" in part, path
        assert part["type"] != "string" or "maxLength" in part or "enum" in part, path
        assert part["type"] != "integer" or {"minimum", "maximum"} <= set(part), path
        assert path.endswith("[]") or path == "spec" or part.get("description"), path
    assert found["spec.rules"]["x-kubernetes-list-map-keys"] == ["name"]
    for field in policy.Keep.model_fields.values():
        [rule] = found["spec.rules[].keep"]["x-kubernetes-validations"]
        assert f"has(self.{field.alias})" in rule["rule"], "one more part of keep is one more way to keep something"
