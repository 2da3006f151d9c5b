"""lm-eval's tasks on a live model: log-likelihoods, figures, differences, and what is wrong with a task, said
once."""

import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import FinetuneError
from finetune.generation.generate import generate, plain_ids
from finetune.models.adapters.adapter import attach, grow_embeddings, load_adapter, save_adapter
from finetune.models.bases.locate import resolve_base
from finetune.models.load import load_model
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection
from tests.support.models import MEMORISED, save_tiny_llama

pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "llama-finetune[benchmarks]"')

from finetune.evaluation.harness.lm_eval import harness_model
from finetune.evaluation.harness.tasks import Figure, Scores, compare, load_tasks, run_tasks

WriteTask = Callable[..., Path]

PETS = [
    {"question": f"Does a {animal} say {sound}?", "choices": ["yes, it does", "no"], "answer": "yes, it does" if true else "no"}
    for animal, sound, true in [
        ("cat", "meow", True), ("dog", "moo", False), ("cow", "moo", True), ("cow", "meow, meow and meow again", False),
        ("duck", "quack", True), ("sheep", "quack", False), ("lamb", "baa", True),
    ]
]  # fmt: skip

CHOICE = {
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "median", "higher_is_better": True},
    ],
}
ANSWER = {
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(autouse=True)
def _data_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What datasets builds from a test's rows goes with the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_base)


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """write_task(name, settings, rows, key=value) -> the folder of task files, with this one in it, and its
    rows."""
    folder = tmp_path / "tasks"
    folder.mkdir()

    def write(
        name: str, settings: dict[str, Any], rows: list[dict[str, Any]] | None = None, **changes: Any
    ) -> Path:
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows or PETS))
        source = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(json.dumps(source | settings | changes))  # JSON is YAML
        return folder

    return write


def adapted(
    model: PreTrainedModel, section: AdapterSection | None = None, tokens: tuple[int, ...] = ()
) -> PeftModel:
    """The model with an adapter that changes what it says."""
    generator = torch.Generator().manual_seed(1)
    peft_model = attach(model, section or AdapterSection(rank=4), tokens)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return peft_model.eval()


def log_likelihood(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    """Of an answer's tokens, from one plain forward pass over prompt and answer alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([(prompt + answer)[:-1]])).logits[0].double()
    scores = logits.log_softmax(-1)
    return sum(float(scores[len(prompt) + place - 1, token]) for place, token in enumerate(answer))


PAIRS = [
    ("Hi", " there"),
    ("What is the capital of France?", " Paris, on the Seine"),
    ("What is the capital of France?", " Rome"),
    ("Send two brass lamps to Ada before Friday, please, and one to Bob.", " No."),
    ("A space at its end ", "goes to the answer"),
    ("", "an answer to nothing"),
]


def harness_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> list[float]:
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0, metadata=("pets", number, 1))
        for number, pair in enumerate(PAIRS)
    ]
    return [
        score for score, _ in harness_model(model, tokenizer, batch_size, chat=False).loglikelihood(requests)
    ]


def plain_scores(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    found = []
    for prompt, answer in PAIRS:
        before = tokenizer(prompt.rstrip())["input_ids"] or [tokenizer.bos_token_id]
        whole = tokenizer(prompt + answer, add_special_tokens=prompt != "")["input_ids"]
        found.append(log_likelihood(model, before, whole[len(before) :] if prompt else whole))
    return found


@pytest.mark.parametrize(
    ("batch_size", "dtype"), [(1, torch.float32), (4, torch.float32), (1, torch.bfloat16)]
)
def test_log_likelihoods_are_those_of_a_plain_forward_pass(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int, dtype: torch.dtype
) -> None:
    """Padding and batches change no log-likelihood by more than 1e-4, and 16-bit logits are summed in
    float32."""
    model.to(dtype)
    found = harness_scores(model, tokenizer, batch_size)
    assert found == pytest.approx(plain_scores(model, tokenizer), abs=1e-4)


def test_the_token_that_begins_a_text_is_put_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A tokenizer that begins each text with a token, as LLaMA's do, has it once, and not at all before a
    template's text."""
    from tokenizers.processors import TemplateProcessing

    without = harness_scores(model, tokenizer, 4)
    bos = (str(tokenizer.bos_token), int(tokenizer.bos_token_id))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    assert tokenizer("x")["input_ids"][0] == bos[1]
    found = harness_scores(model, tokenizer, 4)
    assert found == pytest.approx(plain_scores(model, tokenizer), abs=1e-4)
    assert found[0] != pytest.approx(without[0], abs=1e-3)
    in_chat = harness_model(model, tokenizer, 1, chat=True).tok_encode("as the template has it")
    assert in_chat == tokenizer("as the template has it", add_special_tokens=False)["input_ids"]


TEXTS = [
    "Hi",
    "What is the capital of France? Paris, on the Seine.",
    "<|im_start|>begun by hand",
    "lamp " * 180,
]
"""The third begins with the BOS as text; the last is longer than the context."""


def rolling_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, chat: bool) -> list[float]:
    from lm_eval.api.instance import Instance

    requests = [
        Instance(
            request_type="loglikelihood_rolling",
            doc={},
            arguments=(text,),
            idx=0,
            metadata=("texts", number, 1),
        )
        for number, text in enumerate(TEXTS)
    ]
    found: list[float] = harness_model(model, tokenizer, 2, chat=chat).loglikelihood_rolling(requests)
    return found


def test_rolling_log_likelihoods_have_one_bos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A text follows from one BOS, which is not scored, whether the tokenizer, the text or the harness begins
    it with one."""
    from tokenizers.processors import TemplateProcessing

    bos = (str(tokenizer.bos_token), int(tokenizer.bos_token_id))
    plain = []
    for text in TEXTS[:3]:
        ids = tokenizer(text.removeprefix(bos[0]), add_special_tokens=False)["input_ids"]
        plain.append(log_likelihood(model, [bos[1]], ids))
    without = rolling_scores(model, tokenizer, chat=False)
    assert without[:3] == pytest.approx(plain, abs=1e-4)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    assert tokenizer("Hi")["input_ids"][0] == bos[1]
    for chat in (False, True):
        assert rolling_scores(model, tokenizer, chat=chat) == pytest.approx(without, abs=1e-4)
    # Log-likelihoods of pairs are still begun by it afterwards.
    assert harness_scores(model, tokenizer, 4) == pytest.approx(plain_scores(model, tokenizer), abs=1e-4)


def test_a_models_own_options_change_no_answer(
    memorised: Path, tmp_path: Path, write_task: WriteTask
) -> None:
    """Answers of generate_until follow the task's options alone; what the model's file asks for is said, once
    a task asks."""
    folder = tmp_path / "base"
    shutil.copytree(memorised, folder)
    options = {"min_new_tokens": 30, "suppress_tokens": [66], "num_beams": 3, "return_dict_in_generate": True}
    (folder / "generation_config.json").write_text(json.dumps(options))
    model = load_model(resolve_base(ModelSection(base=str(folder))), dtype=torch.float32).eval()
    rows = [{"question": question, "answer": answer} for question, answer in MEMORISED.items()]
    kwargs = {"until": ["<|im_end|>"], "max_gen_toks": 60}
    tasks = load_tasks(["known"], write_task("known", ANSWER, rows, generation_kwargs=kwargs))
    scores = run_tasks(tasks, model, load_tokenizer(folder), batch_size=2, chat=True)
    assert scores.figures[0].value == 1.0
    assert scores.notes[0].startswith(
        "the model's generation_config.json asks for min_new_tokens 30, suppress_tokens [66]"
    )
    tasks = load_tasks(["pets"], write_task("pets", CHOICE))
    assert not any(
        "generation_config" in note
        for note in run_tasks(tasks, model, load_tokenizer(folder), batch_size=2).notes
    )


def test_an_adapter_counts_without_a_merge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Log-likelihoods of a live adapter are the merged model's, not the base's, and the adapter is still
    there afterwards."""
    base = harness_scores(model, tokenizer, 4)
    live = adapted(model)
    found = harness_scores(live, tokenizer, 4)
    assert found == pytest.approx(plain_scores(live, tokenizer), abs=1e-4)
    assert any("lora_A" in name for name, _ in live.named_parameters())
    assert all(abs(new - old) > 1e-2 for new, old in zip(found, base, strict=True))
    merged = live.merge_and_unload()
    assert found == pytest.approx(plain_scores(merged, tokenizer), rel=1e-4)


@pytest.mark.parametrize("kind", ["embedding", "new tokens"])
def test_an_adapter_that_holds_embeddings_keeps_them_on_a_tied_base(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    """HFLM would tie head and embedding once more: that fails on rows of new tokens, and replaces a trained
    embedding."""
    save_tiny_llama(tmp_path, tie_word_embeddings=True)

    def base() -> PreTrainedModel:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        grow_embeddings(loaded, vocabulary + 2)
        return loaded

    vocabulary = len(tokenizer)
    new, saved = ((vocabulary, vocabulary + 1), ()) if kind == "new tokens" else ((), ("embed_tokens",))
    save_adapter(
        adapted(base(), AdapterSection(rank=4, modules_to_save=saved), new),
        tmp_path / "adapter",
        str(tmp_path),
    )
    live = load_adapter(base(), tmp_path / "adapter").eval()
    before = plain_scores(live, tokenizer)
    assert harness_scores(live, tokenizer, 4) == pytest.approx(before, abs=1e-4)
    assert plain_scores(live, tokenizer) == pytest.approx(before, abs=1e-6)


def test_multiple_choice_takes_the_likeliest_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_task: WriteTask
) -> None:
    """The accuracy is the share of questions whose right answer has the highest log-likelihood; its error is
    that of a mean."""
    tasks = load_tasks(["pets"], write_task("pets", CHOICE))
    accuracy, median = run_tasks(tasks, model, tokenizer, batch_size=3).figures
    right = []
    for row in PETS:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        scores = [
            log_likelihood(model, prompt, tokenizer(" " + choice)["input_ids"]) for choice in row["choices"]
        ]
        right.append(float(row["choices"][scores.index(max(scores))] == row["answer"]))
    assert 0 < sum(right) < len(right)
    assert accuracy.value == pytest.approx(statistics.fmean(right))
    assert accuracy.standard_error == pytest.approx(statistics.stdev(right) / math.sqrt(len(right)))
    assert (accuracy.task, accuracy.metric, accuracy.filter, accuracy.shots) == ("pets", "acc", "none", 0)
    assert (accuracy.questions, accuracy.higher_is_better) == (len(PETS), True)
    assert median.metric == "acc_norm"
    assert median.standard_error is not None  # by the bootstrap


def test_generated_answers_are_those_of_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_task: WriteTask
) -> None:
    """Left-padded batches write what finetune generate writes: rows that ask for just that match, the others
    don't."""
    texts = [row["question"] for row in PETS]
    prompts = [plain_ids(text, tokenizer) for text in texts]
    answers = generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=1)
    rows = [
        {"question": text, "answer": answer.text.split("\n\n")[0] if number % 2 else "something else"}
        for number, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]
    tasks = load_tasks(["say"], write_task("say", ANSWER, rows, doc_to_target="answer"))
    scores = run_tasks(tasks, model, tokenizer, batch_size=3, keep_questions=True)
    assert scores.figures[0].value == pytest.approx(3 / 7)
    assert list(scores.by_question["say", "exact_match", "none"].values()) == [0, 1, 0, 1, 0, 1, 0]


def test_chat_puts_the_prompts_into_the_template_of_training(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_task: WriteTask
) -> None:
    """--chat asks in the model's own turns, once begun, dated as in training, and an answer ends with its
    turn."""
    tokenizer.chat_template = "{{ bos_token }}{{ strftime_now('%d %b %Y') }} " + str(tokenizer.chat_template)
    tasks = load_tasks(["say"], write_task("say", ANSWER))
    run_tasks(tasks, model, tokenizer, batch_size=4, limit=2, chat=True)
    prompts = [instance.args[0] for instance in tasks.loaded["tasks"]["say"].instances]
    assert prompts == [
        f"<|im_start|>26 Jul 2024 <|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
        for row in PETS[:2]
    ]
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    tokenizer.chat_template = None
    with pytest.raises(FinetuneError, match="leave --chat out"):
        run_tasks(tasks, model, tokenizer, batch_size=4, chat=True)


def test_the_same_call_gives_the_same_figures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_task: WriteTask
) -> None:
    """Few-shot examples and bootstrap are drawn from fixed seeds, whatever was drawn before."""
    train = {"data_files": {"test": str(write_task("pets", CHOICE) / "pets.jsonl")}}
    train["data_files"]["train"] = train["data_files"]["test"]
    folder = write_task("pets", CHOICE, fewshot_split="train", dataset_kwargs=train)
    tasks = load_tasks(["pets"], folder, few_shot=2)
    first = run_tasks(tasks, model, tokenizer, batch_size=4)
    prompts = [instance.args[0] for instance in tasks.loaded["tasks"]["pets"].instances]
    torch.manual_seed(99)
    again = load_tasks(["pets"], folder, few_shot=2)
    for batch_size in (4, 1):
        assert run_tasks(again, model, tokenizer, batch_size=batch_size).figures == first.figures
    assert [instance.args[0] for instance in again.loaded["tasks"]["pets"].instances] == prompts
    assert prompts[0].count("Question:") == 3
    assert first.figures[0].shots == 2


def test_a_difference_has_the_error_of_paired_answers() -> None:
    """Two models that err on the same questions differ for certain; a metric that is no mean has a
    difference, and no error."""

    def scores(metric: str, values: list[float], value: float | None) -> Scores:
        figure = Figure("pets", metric, "none", 0, len(values), True, value, 0.1)
        return Scores([figure], [], 1.0, {figure.key: dict(enumerate(values))})

    base, tuned = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]
    (found,) = compare(scores("acc", base, 0.5), scores("acc", tuned, 0.75))
    assert found.difference == 0.25
    assert found.standard_error == pytest.approx(statistics.stdev([1, 0, 0, 0]) / 2)
    (same,) = compare(scores("acc", base, 0.5), scores("acc", base, 0.5))
    assert (same.difference, same.standard_error) == (0, 0)
    (other,) = compare(scores("f1", base, 0.4), scores("f1", tuned, 0.6))
    assert other.difference == pytest.approx(0.2)
    assert other.standard_error is None
    (absent,) = compare(scores("f1", base, None), scores("f1", tuned, 0.6))
    assert absent.difference is None


@pytest.mark.long
def test_a_group_comes_before_its_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_task: WriteTask
) -> None:
    """A group of the folder has a figure of all its questions; for an unknown name, near ones and the
    folder's are said."""
    write_task("cats", CHOICE, PETS[:3])
    folder = write_task("cows", CHOICE, PETS[3:])
    aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    group = {"group": "animals", "task": ["cats", "cows"], "aggregate_metric_list": aggregate}
    (folder / "animals.yaml").write_text(json.dumps(group))
    figures = run_tasks(load_tasks(["animals"], folder), model, tokenizer, batch_size=4).figures
    assert [(figure.task, figure.metric) for figure in figures][:2] == [("animals", "acc"), ("cats", "acc")]
    by_task = {figure.task: figure for figure in figures if figure.metric == "acc"}
    together = (3 * float(by_task["cats"].value or 0) + 4 * float(by_task["cows"].value or 0)) / 7
    assert by_task["animals"].value == pytest.approx(together)
    with pytest.raises(
        FinetuneError, match=r"no task 'arc_esy'; near it: arc_easy.* holds animals, cats, cows\.$"
    ):
        load_tasks(["cows", "arc_esy"], folder)


def test_what_makes_figures_worth_less_is_noted(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_task: WriteTask
) -> None:
    """Examples that are not given, or hold the answer; cut prompts; right answers among no choice; metrics
    without a figure."""
    write_task("fixed", CHOICE, num_fewshot=0)
    write_task("own", CHOICE)
    metrics = [*CHOICE["metric_list"], {"metric": "acc_nrm", "aggregation": "mean", "higher_is_better": True}]
    rows = [PETS[0] | {"question": "long " * 400}, PETS[1] | {"answer": "maybe"}]
    folder = write_task("odd", CHOICE, rows, metric_list=metrics, num_fewshot=0)
    tasks = load_tasks(["fixed", "own", "odd"], folder, few_shot=2)
    assert [note.split(", ")[0] for note in tasks.notes] == [
        "fixed: its file says num_fewshot: 0",
        "own: the solved examples are drawn from the questions themselves",
        "odd: its file says num_fewshot: 0",
    ]
    notes = " ".join(run_tasks(tasks, model, tokenizer, batch_size=4).notes)
    for part in (
        "lost their beginning",
        "1 questions name a right answer that is none",
        "odd: no figure for its metric acc_nrm",
    ):
        assert part in notes


def test_lm_eval_prints_nothing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    write_task: WriteTask,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither log lines nor bars nor the bootstrap's prints, not even of processes that it would start."""
    write_task("say", ANSWER)
    folder = write_task("pets", CHOICE)
    capfd.readouterr()
    run_tasks(load_tasks(["pets", "say"], folder, few_shot=1), model, tokenizer, batch_size=4)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_path": "owner/on-the-hub", "dataset_kwargs": {}}, "hub, which can't be reached.*data_files.*--task-folder"),
        ({"doc_to_text": "{{nothing}}"}, r"task pets can't be loaded: UndefinedError: 'nothing' is undefined.*pets\.yaml"),
        ({"dataset_kwargs": {"data_files": {"test": "/nowhere.jsonl"}}}, r"/nowhere\.jsonl.*Its file is .*pets\.yaml"),
        ({"output_type": "guess"}, "invalid output_type 'guess'"),
        ({"test_split": "exam"}, "KeyError: 'exam'"),
        ({"process_docs": "no_such_module.function"}, "task pets can't be loaded"),
        ({"unsafe_code": True}, "runs code that the model writes"),
        ({"num_fewshot": 50}, "its first prompt, with 50 solved examples, can't be built"),
        ({"metric_list": [{"metric": "acc", "aggregation": "meen"}]}, "the aggregation of its metric acc is unknown.* mean,"),
        ({"include": "absent.yaml"}, "includes absent.yaml"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_loaded_is_one_message(
    write_task: WriteTask, changes: dict[str, Any], message: str
) -> None:
    """Data only on the hub, wrong fields, files, splits or functions, unsafe code, too many examples: said
    with the place."""
    folder = write_task("pets", CHOICE, **changes)
    with pytest.raises(FinetuneError, match=message):
        load_tasks(["pets"], folder)


def test_a_broken_task_file_is_named(write_task: WriteTask, tmp_path: Path) -> None:
    """A file that is no YAML, no mapping, asks for Python objects or has another's name is refused, not
    passed over."""
    folder = write_task("pets", CHOICE)
    for text, message in (
        ("task: x\n  metric: [", r"other\.yaml can't be read: .*line 2"),
        ("- task", r"other\.yaml holds a list"),
        ("task: !!python/object/apply:os.getcwd []", r"other\.yaml can't be read"),
        ("task: pets", r"two task files are named pets: .*other\.yaml and .*pets\.yaml"),
    ):
        (folder / "other.yaml").write_text(text)
        with pytest.raises(FinetuneError, match=message):
            load_tasks(["pets"], folder)
    with pytest.raises(FinetuneError, match="is not a folder"):
        load_tasks(["pets"], tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FinetuneError, match="holds no task file"):
        load_tasks(["pets"], tmp_path / "empty")


def test_a_task_too_long_for_the_model_is_one_message(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_task: WriteTask
) -> None:
    """An answer for which the context has no room is refused with both lengths."""
    folder = write_task("say", ANSWER, generation_kwargs={"until": ["\n"], "max_gen_toks": 300})
    with pytest.raises(
        FinetuneError, match=r"can't run say on this model: .*\(300\) must be less than .*\(256\)"
    ):
        run_tasks(load_tasks(["say"], folder), model, tokenizer, batch_size=4)


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lm-eval is not installed, the message says what to install, before anything else is looked at."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(FinetuneError, match=r'pip install "llama-finetune\[benchmarks\]"'):
        load_tasks(["pets"], Path("/nowhere"))
