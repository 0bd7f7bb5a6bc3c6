import pytest

from ssl_hub.training.arguments import DataArguments, PretrainingArguments, parse_arguments

DIGITS = ["--recipe", "mae-vit-tiny-digits", "--output_dir", "out"]


def test_defaults_come_from_the_recipe_and_give_way_to_the_command_line():
    recipe, model_args, data_args, args = parse_arguments([*DIGITS, "--max_train_steps", "7", "--seed", "3"])
    assert recipe.name == model_args.recipe == "mae-vit-tiny-digits"
    assert (data_args.dataset_name, data_args.eval_split) == ("digits", "test")
    assert (args.max_train_steps, args.seed) == (7, 3)
    assert (args.per_device_train_batch_size, args.learning_rate, args.warmup_steps) == (64, 0.0015, 100)


def test_train_dir_replaces_the_dataset_of_the_recipe():
    _, _, data_args, args = parse_arguments([*DIGITS, "--train_dir", "images"])
    assert (data_args.dataset_name, data_args.train_dir, data_args.eval_split) == (None, "images", None)
    assert args.max_train_steps == 2500
    _, _, data_args, _ = parse_arguments([*DIGITS, "--train_dir=images", "--eval_split=val"])
    assert (data_args.dataset_name, data_args.eval_split) == (None, "val")


def test_a_dataset_is_needed_and_only_one():
    with pytest.raises(ValueError, match=r"give either --dataset_name .* or --train_dir .*; got None and None"):
        parse_arguments(["--recipe", "mae-vit-base-300e", "--output_dir", "out"])
    with pytest.raises(ValueError, match="got digits and images"):
        DataArguments(dataset_name="digits", train_dir="images")


@pytest.mark.parametrize("arguments", [["--output_dir", "out"], [*DIGITS, "--max_train_step", "7"], DIGITS[:2]])
def test_missing_and_unknown_arguments(arguments, capsys):
    with pytest.raises((SystemExit, ValueError)) as error:
        parse_arguments(arguments)
    said = capsys.readouterr().err + str(error.value)
    assert any(name in said for name in ("--recipe", "max_train_step", "--output_dir"))


def test_optimizer_and_chunks_on_the_command_line():
    arguments = ["--recipe", "simclr-resnet50-200e", "--train_dir", "images", "--output_dir", "out"]
    _, _, _, args = parse_arguments([*arguments, "--optim", "sgd", "--loss_chunk_size", "32"])
    assert (args.optim, args.loss_chunk_size, args.weight_decay) == ("sgd", 32, 1e-6)


def test_evaluators_of_the_command_line():
    text = "[{type: knn, k: 5}, {type: linear_probe}]"
    assert parse_arguments([*DIGITS, "--evaluation", text])[3].evaluation == text
    for text, message in (
        ("knn", "--evaluation 'knn': evaluation must be a list such as"),
        ("[{type: kn}]", "near it: knn"),
        ("[{type: knn", "while parsing a flow mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_arguments([*DIGITS, "--evaluation", text])


def test_recipe_with_an_unknown_argument(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: mae-vit-tiny-digits\ntraining: {learning_rat: 1}\n")
    with pytest.raises(ValueError, match=r"sets 'learning_rat', which is no training argument; near it: learning_rate"):
        parse_arguments(["--recipe", str(path), "--output_dir", "out"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("per_device_train_batch_size", 0, "must be a whole number of at least 1, got 0"),
        ("gradient_accumulation_steps", 0, "must be a whole number of at least 1, got 0"),
        ("max_train_steps", -1, "must be a whole number of at least 1, got -1"),
        ("num_train_epochs", 0, "must be a number above 0, got 0"),
        ("mixed_precision", "fp8", "must be 'no', 'fp16' or 'bf16', got 'fp8'"),
        ("loss_chunk_size", 0, "must be a whole number of at least 1, got 0"),
        ("optim", "adam", "must be 'adamw', 'sgd' or 'lars', got 'adam'"),
        ("mixed_precision", False, "must be 'no', 'fp16' or 'bf16', got False"),
        ("eval_crop_ratio", 1.1, r"must be a number in \(0, 1\], got 1.1"),
        ("checkpointing_steps", "epochs", "must be a number of steps or 'epoch', got 'epochs'"),
        ("checkpointing_steps", "0", "must be a number of steps or 'epoch', got '0'"),
    ],
)
def test_values_out_of_range(name, value, message):
    with pytest.raises(ValueError, match=f"--{name} {message}"):
        PretrainingArguments(output_dir="out", **{name: value})
