"""Clients of a federation: what goes into their folder, and what alone comes out."""

import shutil
from pathlib import Path

import pytest

from cohobate import params
from cohobate.data.records import ADAPT, CAPTURE, write_json
from cohobate.errors import UserError
from cohobate.params import validated
from cohobate.teachers import clients
from cohobate.teachers.clients import Client
from cohobate.teachers.teacher import Teacher
from tasks.preflight.clients import check_clients
from tests.tiny_project import write_client_rows
from tests.tiny_rounds import files_with

NORTH = Path("clients/north")
STORE = CAPTURE / "north"


@pytest.fixture
def client(project: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Return a client whose stages write a store beside the rows that they read."""
    write_client_rows(NORTH)
    params.PARAMS.write_text("teachers: {north: {model: m, client: {folder: clients/north}}}\n")

    def run(self: Client, stage: str, item: str, work: Path) -> None:
        assert (work / "rows.jsonl").read_bytes() == self.rows.read_bytes()
        (work / STORE).mkdir(parents=True)
        (work / STORE / "logp.npy").write_bytes(b"12345678")

    monkeypatch.setattr(clients.Client, "_run_process", run)
    return Client(folder=str(NORTH))


def test_what_is_listed_comes_out_and_is_counted(client: Client) -> None:
    Path("public.jsonl").write_text("a public prompt\n")
    given = {Path("rows.jsonl"): client.rows, Path("public.jsonl"): Path("public.jsonl")}
    traffic = client.run("capture", "north", given, [STORE])
    assert traffic["bytes_from_client"] == 8
    # its own rows are no traffic
    settings = (NORTH / "stages/capture" / params.PARAMS).stat().st_size
    assert traffic["bytes_to_client"] == len("a public prompt\n") + settings
    assert not files_with(Path(), "secretnorth")


def test_a_row_that_left_would_be_found(client: Client) -> None:
    client.run("capture", "north", {Path("rows.jsonl"): client.rows}, [STORE, Path("rows.jsonl")])
    assert files_with(Path(), "secretnorth") == [Path("rows.jsonl")]


def test_the_client_reads_the_rounds_params_without_other_teachers(client: Client) -> None:
    client.run("capture", "north", {Path("rows.jsonl"): client.rows}, [STORE])
    document = params.load(NORTH / "stages/capture" / params.PARAMS)
    assert document == {"teachers": {"north": {"model": "m"}}}


def test_another_model_than_adapt_left_is_refused(client: Client) -> None:
    client.model.mkdir()
    (client.model / "config.json").write_text("{}")
    write_json(ADAPT / "north" / clients.RECORD, {"fingerprint": "0" * 64})
    with pytest.raises(UserError, match="not the one that adapt tuned") as refused:
        client.check_model("north")
    assert "adapt@north" in refused.value.fix
    shutil.rmtree(client.model)
    with pytest.raises(UserError, match="not the one that adapt tuned"):
        client.check_model("north")


def test_a_stage_that_fails_says_why(project: Path) -> None:
    write_client_rows(NORTH)
    params.PARAMS.write_text("teachers: {north: {model: m}}\n")
    with pytest.raises(UserError, match="no stage is called") as refused:
        Client(folder=str(NORTH)).run("nothing", "north", {}, [])
    assert "nothing of the client north failed" in str(refused.value)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"evaluate": {"teacher": "north"}}, "evaluate.teacher"),
        ({"init_student": {"teacher": "north"}}, "init_student.teacher"),
        ({"generate": {"routes": {"sums": "north"}}}, "generate.routes.sums"),
        ({"capture": {"signals": {"type": "labels", "by": "votes"}}}, "votes"),
    ],
)
def test_what_needs_more_than_distributions_is_refused(document: dict, named: str) -> None:
    fields = {"model": "m", "client": {"folder": "clients/north"}}
    teachers = {"north": validated(Teacher, fields, "teachers.north")}
    with pytest.raises(UserError, match=named):
        check_clients(teachers, {}, document)


def test_a_client_without_signals_is_refused() -> None:
    fields = {"model": "m", "signals": False, "client": {"folder": "clients/north"}}
    with pytest.raises(UserError, match="distributions are all that it lends"):
        validated(Teacher, fields, "teachers.north")
