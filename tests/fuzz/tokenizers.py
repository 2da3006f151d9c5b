"""Changes of a tokenizer's files: vocabularies, merges, processors and special tokens as no trainer writes
them."""

from random import Random
from typing import Any

from tests.fuzz.templates import template
from tests.fuzz.values import change_anywhere, junk, set_known, shown

IDS = [0, 1, 5, 399, 400, 401, 1000, -1, 2**31, 2**32 - 1, 2**32, 2**63, 1.5, "5", None]
TEXTS = [
    "",
    " ",
    "a",
    "<x>",
    "<|im_end|>",
    "<|im_start|>",
    "é",
    "\0",
    "▁",
    "Ġ",
    "\n",
    "x" * 5000,
    "<|not there|>",
]


def odd_token(random: Random) -> Any:
    """A special token as tokenizer_config.json may name it."""
    flags = ["lstrip", "rstrip", "normalized", "single_word", "special"]
    described = {"content": random.choice(TEXTS), "__type": "AddedToken"} | {
        flag: random.random() < 0.5 for flag in flags
    }
    if random.random() < 0.3:
        described[random.choice([*flags, "content", "id", "x"])] = junk(random)
    return random.choice([random.choice(TEXTS), described, described, junk(random)])


def change_tokenizer_config(random: Random, config: dict[str, Any]) -> str:
    """tokenizer_config.json."""
    from transformers import PreTrainedTokenizerBase

    special = list(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    match random.choices(
        ["anywhere", "token", "decoder", "template", "class", "known"], [15, 25, 15, 15, 10, 20]
    )[0]:
        case "anywhere":
            return change_anywhere(random, config)
        case "token":
            key = random.choice(special)
            config[key] = odd_token(random)
        case "decoder":
            key = random.choice(["added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"])
            several = {str(random.choice(IDS)): odd_token(random) for _ in range(random.randrange(1, 4))}
            config[key] = random.choice([several, several, list(several.values()), junk(random)])
        case "template":
            key, text = "chat_template", template(random)
            named = [
                {"name": random.choice(["default", "tool_use", "", 5]), "template": template(random)}
                for _ in range(random.randrange(3))
            ]
            config[key] = random.choice(
                [
                    text,
                    text,
                    named,
                    {"default": text},
                    {"x": text},
                    [{"name": "default"}],
                    [text],
                    junk(random),
                ]
            )
        case "class":
            key = "tokenizer_class"
            names = [
                "LlamaTokenizer",
                "LlamaTokenizerFast",
                "GPT2Tokenizer",
                "BertTokenizer",
                "T5Tokenizer",
                "NoSuch",
                "PreTrainedTokenizer",
            ]
            config[key] = random.choice(
                [*names, "TokenizersBackend", "Qwen2Tokenizer", "os.system", junk(random)]
            )
        case _:
            known: list[tuple[str, Any]] = [
                ("model_max_length", 10**30), ("padding_side", "middle"), ("truncation_side", "left"),
                ("add_bos_token", True), ("add_eos_token", True), ("add_prefix_space", True),
                ("legacy", False), ("clean_up_tokenization_spaces", True), ("split_special_tokens", True),
                ("model_input_names", ["x"]), ("auto_map", {"AutoTokenizer": ["own.T", None]}),
                ("from_slow", True), ("backend", "sentencepiece"), ("tokenizer_file", "/etc/passwd"),
                ("vocab_file", "x.model"), ("name_or_path", "x/y"), ("tokenizer_object", {}),
                ("sp_model_kwargs", {"nbest_size": -1}), ("chat_template", "x"), ("special_tokens", {}),
                ("max_length", 3), ("stride", 99), ("pad_to_multiple_of", 0), ("pad_token_type_id", "x"),
                ("return_tensors", "pt"), ("truncation", True), ("padding", "max_length"), ("gguf_file", "x"),
                ("processor_class", "x"), ("fix_mistral_regex", True), ("response_schema", {"type": "x"}),
                ("is_local", False), ("local_files_only", False), ("trust_remote_code", True),
                ("__slow_tokenizer", 1), ("self", 1), ("verbose", 7), ("vocab", {"a": 0}),
                ("merges", [["a", "b"]]),
            ]  # fmt: skip
            return set_known(random, config, known)
    return f"{key} = {shown(config[key])}"


def change_tokenizer(random: Random, document: dict[str, Any]) -> str:
    """tokenizer.json."""
    model = document.get("model")
    changes = ["anywhere", "added", "added", "pre", "normalizer", "post", "decoder", "limits", "model"]
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict | list) and model["vocab"]:
        changes += ["vocabulary", "vocabulary", "merges", "flags"]
    match random.choice(changes):
        case "vocabulary":
            return _change_vocabulary(random, model)
        case "merges":
            return _change_merges(random, model)
        case "flags":
            key = random.choice(
                [
                    "unk_token",
                    "unk_id",
                    "byte_fallback",
                    "fuse_unk",
                    "dropout",
                    "ignore_merges",
                    "continuing_subword_prefix",
                    "type",
                ]
            )
            model[key] = random.choice(
                [
                    True,
                    "##",
                    0,
                    10**6,
                    0.5,
                    1.0,
                    None,
                    "<x>",
                    "BPE",
                    "Unigram",
                    "WordPiece",
                    "WordLevel",
                    junk(random),
                ]
            )
            return f"model.{key} = {shown(model[key])}"
        case "model":
            document["model"] = random.choice(_models(random))
            return f"model = {shown(document['model'])}"
        case "added":
            return _change_added(random, document)
        case "pre":
            document["pre_tokenizer"] = _nested(random, "pretokenizers", _pre_tokenizers(random))
            return f"pre_tokenizer = {shown(document['pre_tokenizer'])}"
        case "normalizer":
            document["normalizer"] = _nested(random, "normalizers", _normalizers(random))
            return f"normalizer = {shown(document['normalizer'])}"
        case "post":
            document["post_processor"] = _nested(random, "processors", _processors(random))
            return f"post_processor = {shown(document['post_processor'])}"
        case "decoder":
            document["decoder"] = _nested(random, "decoders", _decoders(random))
            return f"decoder = {shown(document['decoder'])}"
        case "limits":
            key = random.choice(["truncation", "padding"])
            truncation = {
                "direction": "Right",
                "max_length": random.choice([0, 1, 3, 10**18]),
                "strategy": "LongestFirst",
                "stride": random.choice([0, 2, 9]),
            }
            padding = {
                "strategy": random.choice(["BatchLongest", {"Fixed": 3}, {"Fixed": 10**12}]),
                "direction": "Left", "pad_id": random.choice([0, 2**32 - 1]),
                "pad_to_multiple_of": random.choice([None, 0, 8, 10**9]), "pad_type_id": 0,
                "pad_token": "<|im_end|>",
            }  # fmt: skip
            document[key] = truncation if key == "truncation" else padding
            return f"{key} = {shown(document[key])}"
        case _:
            return change_anywhere(random, document)


def _change_vocabulary(random: Random, model: dict[str, Any]) -> str:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        place = random.randrange(len(vocabulary))
        vocabulary[place] = random.choice(
            [["a", float(10**300)], ["", 0.0], ["a"], ["a", None], ["a", -1.0, 2], junk(random)]
        )
        return f"model.vocab.{place} = {shown(vocabulary[place])}"
    token = random.choice(list(vocabulary))
    if random.random() < 0.4:
        gone = [token for token in vocabulary if random.random() < random.choice([0.01, 0.5])] or [token]
        for name in gone:
            del vocabulary[name]
        return f"model.vocab lacks {len(gone)} tokens, {gone[0]!r} among them"
    name = random.choice([token, token, *TEXTS])
    vocabulary[name] = random.choice([*IDS, vocabulary[random.choice(list(vocabulary))]])
    return f"model.vocab.{name[:40]!r} = {shown(vocabulary[name])}"


def _change_merges(random: Random, model: dict[str, Any]) -> str:
    merges = model.get("merges")
    odd = [
        ["nope", "nowhere"],
        ["a", "a"],
        "a b",
        "a",
        "a b c",
        ["a"],
        ["a", "b", "c"],
        ["", ""],
        [1, 2],
        junk(random),
    ]
    if not isinstance(merges, list) or random.random() < 0.15:
        model["merges"] = random.choice([[], None, odd, [["a", "b"]] * 1000, junk(random)])
        return f"model.merges = {shown(model['merges'])}"
    random.shuffle(merges) if random.random() < 0.2 else merges.insert(
        random.randrange(len(merges) + 1), random.choice(odd)
    )
    return f"model.merges: {len(merges)}, changed"


def _models(random: Random) -> list[Any]:
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz<|>_ ")}
    scores = [[letter, -float(index)] for letter, index in letters.items()]
    return [
        {
            "type": "Unigram",
            "unk_id": random.choice([None, 0, 3, 10**6, -1]),
            "vocab": random.choice([scores, scores[:1], []]),
        },
        {"type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": True},
        {"type": "WordLevel", "vocab": letters, "unk_token": random.choice(["a", "<unk>", ""])},
        {
            "type": "WordPiece",
            "vocab": letters,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": random.choice([0, 100]),
        },
        {
            "type": "BPE",
            "vocab": letters,
            "merges": [],
            "unk_token": random.choice([None, "a", "<unk>"]),
            "byte_fallback": random.random() < 0.5,
        },
        {"type": "BPE", "vocab": {}, "merges": []},
        {"vocab": letters, "merges": []},
        {"type": "NoSuch"},
        junk(random),
    ]


def _change_added(random: Random, document: dict[str, Any]) -> str:
    added = document.setdefault("added_tokens", [])
    flags = {
        flag: random.random() < 0.5 for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
    }
    token = {"id": random.choice(IDS), "content": random.choice(TEXTS)} | flags
    if random.random() < 0.2:
        token[random.choice(list(token))] = junk(random)
    if not isinstance(added, list) or random.random() < 0.1:
        document["added_tokens"] = random.choice([[], None, [token] * 3, {"x": token}, junk(random)])
    elif added and random.random() < 0.3:
        del added[random.randrange(len(added))]
        return "one of added_tokens removed"
    else:
        added.append(token)
    return f"added_tokens: {shown(token)}"


def _nested(random: Random, key: str, choices: list[Any]) -> Any:
    """One of them, some in a sequence, or a deep one."""
    match random.choices(["one", "several", "deep", "junk"], [60, 20, 5, 15])[0]:
        case "one":
            return random.choice(choices)
        case "several":
            return {"type": "Sequence", key: random.choices(choices, k=random.randrange(4))}
        case "deep":
            value = random.choice(choices)
            for _ in range(random.choice([3, 60, 200])):
                value = {"type": "Sequence", key: [value]}
            return value
        case _:
            return junk(random)


def _patterns(random: Random) -> Any:
    texts = [
        "",
        "a",
        "(",
        "(a+)+$",
        "((((a|[a-z_.0-9])+)+)+)+!",
        "(?<!a)b",
        "\\p{L}+",
        "[",
        "(?R)",
        ".*",
        "x{99999}",
        "(?:.?){200}z",
        "\\1(a)",
    ]
    return (
        {random.choice(["Regex", "Regex", "String"]): random.choice(texts)}
        if random.random() < 0.9
        else junk(random)
    )


def _pre_tokenizers(random: Random) -> list[Any]:
    behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "X"]
    return [
        {"type": "Split", "pattern": _patterns(random), "behavior": random.choice(behaviors), "invert": random.random() < 0.5},
        {"type": "Split", "pattern": _patterns(random), "behavior": random.choice(behaviors), "invert": False},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": random.random() < 0.5},
        {"type": "Metaspace", "replacement": random.choice(["▁", "", "xx", " "]), "prepend_scheme": random.choice(["always", "never", "x"]), "split": True},
        {"type": "Whitespace"}, {"type": "WhitespaceSplit"}, {"type": "BertPreTokenizer"},
        {"type": "UnicodeScripts"}, {"type": "Digits"},
        {"type": "Punctuation", "behavior": random.choice(behaviors)},
        {"type": "CharDelimiterSplit", "delimiter": random.choice(["a", "", "ab"])},
        {"type": "FixedLength", "length": random.choice([0, 1, 10**18])}, {"type": "NoSuch"}, {},
    ]  # fmt: skip


def _normalizers(random: Random) -> list[Any]:
    return [
        {"type": "Replace", "pattern": _patterns(random), "content": random.choice(["", "x", "x" * 10_000, "aa"])},
        {"type": "Prepend", "prepend": random.choice(["▁", "", "x" * 10_000])}, {"type": "NFKC"},
        {"type": "Lowercase"}, {"type": "StripAccents"},
        {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Nmt"}, {"type": "ByteLevel"},
        {"type": "NoSuch"},
        {"type": "Precompiled", "precompiled_charsmap": random.choice(["", "AAAA", "!!", "/////w==", "A" * 1000, None])},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    ]  # fmt: skip


def _processors(random: Random) -> list[Any]:
    special = {
        "id": "<s>",
        "ids": random.choice([[0], [], [2**32 - 1], [10**6]]),
        "tokens": random.choice([["<s>"], []]),
    }
    single = [
        {"SpecialToken": {"id": random.choice(["<s>", "<nope>"]), "type_id": 0}},
        {"Sequence": {"id": random.choice(["A", "B"]), "type_id": 0}},
    ]
    return [
        {"type": "TemplateProcessing", "single": random.choice([single, single * 3, [], single[:1]]), "pair": single, "special_tokens": {"<s>": special}},
        {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}},
        {"type": "BertProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", random.choice([1, 10**6])]},
        {"type": "RobertaProcessing", "sep": ["x", 0], "cls": ["y", 1], "trim_offsets": True, "add_prefix_space": True},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "NoSuch"},
    ]  # fmt: skip


def _decoders(random: Random) -> list[Any]:
    return [
        {"type": "Replace", "pattern": _patterns(random), "content": random.choice(["", "x"])},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": random.choice([" ", "", "ab"]), "start": random.choice([0, 1, 10**9]), "stop": random.choice([0, 1, 10**9])},
        {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "CTC"}, {"type": "NoSuch"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    ]  # fmt: skip
