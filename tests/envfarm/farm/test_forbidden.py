"""What a cluster forbids, as whoever types a command sees it: which verb, on which resource; and nothing is left behind."""

from __future__ import annotations

import base64
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfarm.backends.owners import BOX
from envfarm.cli import main
from tests.envfarm.farm.helpers import write_farm

pytestmark = pytest.mark.kubernetes

NAME = f"test-{secrets.token_hex(3)}"
STREAMS = {"pods/exec": "create,get", "pods/attach": "create,get"}
RIGHTS = {
    "nothing": {},
    "no-exec": {"pods": "create,delete,list,watch", "pods/attach": "create,get"},
    "no-list": {"pods": "create,delete", **STREAMS},
    "no-leases": {"pods": "create,delete,list,watch", **STREAMS},
}
"""Of service accounts: resource -> verbs."""
TOKEN = """
apiVersion: v1
kind: Secret
metadata: {name: token-%s, annotations: {kubernetes.io/service-account.name: %s}}
type: kubernetes.io/service-account-token
"""
ROLLOUT = (
    "rollout",
    "--env",
    "coding/shell-v0",
    "--policy",
    "oracle",
    "--episodes",
    "1",
    "--backend",
    "kubernetes",
    "--out",
    "OUT",
)


def kubectl(*arguments: str, said: str | None = None) -> str:
    command = ["kubectl", "-n", NAME, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, input=said).stdout


@pytest.fixture(scope="module")
def tokens() -> Iterator[dict[str, str]]:
    """Of service accounts with the rights above, and one that nobody gave out."""
    kubectl("create", "namespace", NAME)
    try:
        for account, rights in RIGHTS.items():
            kubectl("create", "serviceaccount", account)
            kubectl("apply", "-f", "-", said=TOKEN % (account, account))
            for number, (resource, verbs) in enumerate(rights.items()):
                role = f"{account}-{number}"
                kubectl("create", "role", role, f"--verb={verbs}", f"--resource={resource}")
                kubectl("create", "rolebinding", role, f"--role={role}", f"--serviceaccount={NAME}:{account}")
        yield {"unknown": "nobody-gave-this-out", **{account: _token(account) for account in RIGHTS}}
    finally:
        kubectl("delete", "namespace", NAME, "--wait=false")


def _token(account: str) -> str:
    """Made by a controller soon after its Secret; the tests' time limit is the end of patience."""
    while not (found := kubectl("get", "secret", f"token-{account}", "-o", "jsonpath={.data.token}")):
        time.sleep(0.1)
    return base64.b64decode(found).decode()


@pytest.mark.parametrize(
    ("account", "command", "said"),
    [
        ("nothing", ROLLOUT, "may not create pods, delete pods, list pods, watch pods, get pods/attach, get pods/exec"),
        ("no-exec", ROLLOUT, "may not get pods/exec in namespace"),
        ("no-list", ROLLOUT, "may not list pods, watch pods in namespace"),
        ("no-list", ("check", "--hostile", "--backend", "kubernetes"), "may not list pods, watch pods in namespace"),
        ("no-exec", ("serve", "coding/shell-v0", "--backend", "kubernetes", "--port", "0"), "may not get pods/exec in namespace"),
        ("no-exec", ("farm", "up", "HERE"), "may not get pods/exec in namespace"),
        ("no-leases", ("farm", "up", "HERE"), 'cannot list resource "leases"'),
        ("nothing", ("farm", "up", "THERE"), 'cannot patch resource "namespaces"'),
        ("nothing", ("farm", "down", "THERE"), "the cluster refused to delete"),
        ("unknown", ROLLOUT, "does not know this user: the token of the kubeconfig is missing, wrong or expired"),
        ("unknown", ("farm", "up", "THERE"), "does not know this user: the token of the kubeconfig is missing, wrong or expired"),
        ("unknown", ("farm", "down", "THERE"), "does not know this user: the token of the kubeconfig is missing"),
    ],
)  # fmt: skip
def test_what_may_not_be_done_is_named(
    tokens: dict[str, str], account: str, command: tuple[str, ...], said: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "here").mkdir()
    here = f"{{kubernetes: {{namespace: {NAME}, box_namespace: {NAME}, workers: process}}}}"
    words = {
        "OUT": tmp_path / "out",
        "HERE": write_farm(tmp_path / "here", name=NAME, target=here),
        "THERE": write_farm(tmp_path, name=NAME, target=f"{{kubernetes: {{namespace: {NAME}-there}}}}"),
    }
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(kubectl("config", "view", "--raw", "--flatten", "--minify"))
    of_account = ["kubectl", "config", "--kubeconfig", str(kubeconfig)]
    for change in (
        ("set-credentials", "someone", f"--token={tokens[account]}"),
        ("set-context", "--current", "--user=someone", f"--namespace={NAME}"),
    ):
        subprocess.run([*of_account, *change], check=True, capture_output=True)
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig))
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        with pytest.raises(SystemExit) as stopped:
            main([str(words.get(word, word)) for word in command])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and said in told and "Traceback" not in told
    assert not kubectl("get", "pods", "-l", BOX, "-o", "name") and not list((tmp_path / "state").glob("**/keeper.json"))
