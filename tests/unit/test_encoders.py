"""Encoders from folders and files: what they refuse in words, what they are known by, and runs that are built on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_encoders import MEAN, STD, TRANSFORMERS, onnx_graph, save_model
from fixtures.tiny_run import finish, train_tiny, write_pictures
from typer.testing import CliRunner

from scorebayes.cli.main import app
from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders import open_encoder, with_absolute_path
from scorebayes.explain.maps import explain
from scorebayes.report import write_report
from scorebayes.runs.run import open_run
from scorebayes.stages.predict import predict_files
from scorebayes.storage import sealed

CPU = torch.device("cpu")
LITTLE = {
    "size": 56, "components": 6, "steps": 8, "batch": 8, "warmup": 1, "validate_every": 8, "lr": 1e-2, "channels": [8, 16],
    "levels": 4,
}  # fmt: skip


@pytest.fixture
def model(tmp_path) -> Path:
    return save_model("dinov2", tmp_path / "model")


def hf(folder: Path, side: int = 56, layer: str = ""):
    return open_encoder(f"hf:{folder}{layer}", side, CPU)


def pixels(n: int = 2, channels: int = 3, side: int = 56) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


# -- models of transformers -----------------------------------------------------------------------------------------------


def test_patch_tokens_become_the_map_as_transformers_itself_gives_them(tmp_path):
    import transformers

    folder = save_model("registers", tmp_path / "model")
    own = transformers.AutoModel.from_pretrained(folder).eval()
    x = pixels()
    mean, std = (torch.tensor(of)[:, None, None] for of in (MEAN, STD))
    with torch.no_grad():
        said = own(pixel_values=(x - mean) / std)
    encoder = hf(folder)
    patches = said.last_hidden_state[:, 5:]  # after the class token and four registers
    torch.testing.assert_close(encoder(x)[:, :, 1, 2], patches[:, 1 * 4 + 2])
    torch.testing.assert_close(encoder.pooled(x), said.pooler_output)


def test_a_pooler_without_trained_weights_is_not_asked(tmp_path):
    encoder = hf(save_model("vitclassifier", tmp_path / "model"))
    x = pixels()
    torch.testing.assert_close(encoder.pooled(x), encoder(x).mean(dim=(2, 3)))
    with_pooler = hf(save_model("vit", tmp_path / "other"))
    assert (with_pooler.pooled(x) - with_pooler(x).mean(dim=(2, 3))).abs().max() > 1e-3


def test_a_hidden_state_can_be_the_map(tmp_path):
    folder = save_model("resnet", tmp_path / "model")
    assert hf(folder, layer="#-2").cells == 2 * hf(folder).cells
    with pytest.raises(ConfigError, match="no hidden state 9"):
        hf(folder, layer="#9")(pixels())
    with pytest.raises(ConfigError, match="whole number after '#'"):
        hf(folder, layer="#last")
    assert hf(folder, layer="#-2").fingerprint != hf(folder).fingerprint


def test_weights_licence_and_data_are_stated_from_the_folder(model):
    encoder = hf(model)
    import hashlib

    assert encoder.sha256 == hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert (encoder.licence, encoder.pretrained_on) == ("mit", "lines, dots")
    (model / "README.md").unlink()
    assert hf(model).licence == "not stated" and "does not name" in hf(model).pretrained_on


def test_weights_in_several_files_are_one_encoder(model, tmp_path):
    whole = hf(model)
    TRANSFORMERS["dinov2"]().from_pretrained(model).save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    shutil.copy(model / "preprocessor_config.json", tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    parts = hf(tmp_path / "parts")
    assert len(parts.sha256) == 64 != whole.sha256
    torch.testing.assert_close(parts(pixels()), whole(pixels()))
    next((tmp_path / "parts").glob("model-*.safetensors")).unlink()
    with pytest.raises(ConfigError, match="missing"):
        _ = hf(tmp_path / "parts").sha256


def test_another_rule_of_normalisation_is_another_encoder(model):
    before, features = hf(model).fingerprint, hf(model)(pixels())
    said = {"image_mean": 0.1, "image_std": [1.0, 1.0, 1.0], "do_rescale": True, "rescale_factor": 1 / 127.5}
    (model / "preprocessor_config.json").write_text(json.dumps(said))
    assert hf(model).fingerprint != before and (hf(model)(pixels()) - features).abs().max() > 1e-3
    rule = hf(model).rule
    torch.testing.assert_close(rule(torch.full((1, 1, 2, 2), 1.0), 2), torch.full((1, 3, 2, 2), 1.9))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda at: (at / "config.json").unlink(), "has no config.json"),
        (lambda at: (at / "config.json").write_text("{"), "not a JSON file"),
        (lambda at: (at / "preprocessor_config.json").unlink(), "how pixels are normalised"),
        (lambda at: (at / "preprocessor_config.json").write_text('{"image_mean": [1, 2]}'), "image_std is missing"),
        (
            lambda at: (at / "preprocessor_config.json").write_text('{"image_mean": [1, 2], "image_std": [1, 2]}'),
            "2 and 2 numbers",
        ),
        (lambda at: (at / "preprocessor_config.json").write_text('{"rescale_offset": true}'), "rescale_offset is set"),
        (lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"), "can run code"),
        (lambda at: (at / "model.safetensors").write_bytes(b"cut"), "cannot load it"),
    ],
    ids=["config", "config damaged", "rule", "std", "channels", "offset", "pickle", "weights damaged"],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused_in_words(model, spoil, words):
    spoil(model)
    with pytest.raises(ConfigError, match=words):
        hf(model)(pixels())


def test_weights_that_lack_a_layer_are_refused(model):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights lack layernorm.weight"):
        hf(model)(pixels())


def test_a_side_that_patches_do_not_fill_is_refused_with_those_that_do(model):
    with pytest.raises(ConfigError, match=r"patches of 14 pixels, and 60 is no multiple.* 56 or 70"):
        hf(model, side=60)


def test_a_name_that_cannot_be_fetched_says_so_in_one_plain_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="could not be fetched from Hugging Face") as caught:
        open_encoder("hf:nobody/nothing", 56, CPU)
    assert str(caught.value).count("\n") <= 1 and "hf:FOLDER" in str(caught.value)
    for moved in ("./gone", "/gone/with/it", "a/b/c"):
        with pytest.raises(ConfigError, match=r"no such folder.*moved"):
            open_encoder(f"hf:{moved}", 56, CPU)


def test_a_model_of_text_is_refused(tmp_path):
    import transformers

    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    with pytest.raises(ConfigError, match="choose a vision model"):
        hf(tmp_path / "model")(pixels())


def test_colour_is_refused_by_an_encoder_of_grey_images(tmp_path):
    graph = onnx_graph(tmp_path / "grey.onnx", "map", channels=1)
    encoder = open_encoder(f"onnx:{graph}", 56, CPU)
    assert encoder(pixels(channels=1)).shape == (2, 16, 4, 4)
    with pytest.raises(ConfigError, match="takes grey images"):
        encoder(pixels())


# -- ONNX files -----------------------------------------------------------------------------------------------------------


def test_the_file_beside_says_how_an_onnx_encoder_normalises(tmp_path):
    file = onnx_graph(tmp_path / "e.onnx", "map")
    plain = open_encoder(f"onnx:{file}", 56, CPU)
    before, features = plain.fingerprint, plain(pixels())
    assert plain.licence == "not stated"
    said = {"mean": [127.5] * 3, "std": [127.5] * 3, "scale": 255, "licence": "MIT", "pretrained_on": "dots"}
    file.with_suffix(".json").write_text(json.dumps(said))
    other = open_encoder(f"onnx:{file}", 56, CPU)
    assert (other.licence, other.pretrained_on) == ("MIT", "dots")
    assert other.fingerprint != before and other.sha256 == plain.sha256
    mean, std = (torch.tensor(of)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(other((pixels() - mean) / std / 2 + 0.5), features, rtol=1e-4, atol=1e-5)
    file.with_suffix(".json").write_text('{"maen": [1]}')
    with pytest.raises(ConfigError, match="some of the keys mean, std"):
        open_encoder(f"onnx:{file}", 56, CPU)


def test_an_output_can_be_named_and_the_last_map_is_taken(tmp_path):
    file = onnx_graph(tmp_path / "e.onnx", "map")
    last, raw = (open_encoder(f"onnx:{file}{which}", 56, CPU) for which in ("", "#raw"))
    torch.testing.assert_close(last(pixels()), raw(pixels()).tanh())
    assert raw.fingerprint != last.fingerprint
    with pytest.raises(ConfigError, match="There are: raw, map"):
        open_encoder(f"onnx:{file}#row", 56, CPU)(pixels())
    tokens = onnx_graph(tmp_path / "t.onnx", "tokens")
    with pytest.raises(ConfigError, match="its output has the shape"):
        open_encoder(f"onnx:{tokens}#pooled", 56, CPU)(pixels())
    torch.testing.assert_close(open_encoder(f"onnx:{tokens}", 56, CPU)(pixels()), last(pixels()))


def test_a_graph_of_fixed_size_gets_images_of_that_size(tmp_path):
    file = onnx_graph(tmp_path / "e.onnx", "map", n=1, side=42)
    encoder = open_encoder(f"onnx:{file}", 224, CPU)
    assert (encoder.side, encoder.cells) == (42, 3) and encoder(pixels()).shape == (2, 16, 3, 3)


def test_weights_in_a_file_beside_count_and_must_be_there(tmp_path):
    import onnx

    model = onnx.load(str(onnx_graph(tmp_path / "e.onnx", "map")))
    apart = tmp_path / "apart.onnx"
    onnx.save(model, str(apart), save_as_external_data=True, location="apart.bin", size_threshold=0)
    before = open_encoder(f"onnx:{apart}", 56, CPU).sha256
    content = bytearray((tmp_path / "apart.bin").read_bytes())
    content[-2] ^= 1
    (tmp_path / "apart.bin").write_bytes(content)
    assert open_encoder(f"onnx:{apart}", 56, CPU).sha256 != before
    (tmp_path / "apart.bin").unlink()
    with pytest.raises(ConfigError, match="keeps its weights there"):
        _ = open_encoder(f"onnx:{apart}", 56, CPU).sha256


def test_what_is_no_encoder_is_refused_in_words(tmp_path):
    (tmp_path / "e.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="cannot load it"):
        open_encoder(f"onnx:{tmp_path}/e.onnx", 56, CPU)(pixels())
    with pytest.raises(ConfigError, match=r"no such file.*moved"):
        open_encoder(f"onnx:{tmp_path}/gone.onnx", 56, CPU)
    batches = onnx_graph(tmp_path / "two.onnx", "map", n=2, side=56)
    with pytest.raises(ConfigError, match="Expected one input of floats"):
        open_encoder(f"onnx:{batches}", 56, CPU)(pixels())
    with pytest.raises(ConfigError, match=r"'dino' is unknown.*hf:NAME_OR_FOLDER"):
        open_encoder("dino", 56, CPU)


# -- runs -----------------------------------------------------------------------------------------------------------------


def trained(path: Path, text: str, **more):
    features = {**LITTLE, **more, "encoder": text}
    return train_tiny(path, evidence={"sources": ["features"], "features": features})


@pytest.mark.parametrize("kind", ["hf", "onnx"])
def test_a_run_on_a_relative_path_goes_the_whole_way_from_anywhere(kind, tmp_path, monkeypatch):
    """Train, score, predict, explain, report; then weights are moved, and others put in their place."""
    monkeypatch.chdir(tmp_path)
    if kind == "hf":
        save_model("dinov2", Path("encoder"))
        text, weights = "hf:./encoder", tmp_path / "encoder"
    else:
        onnx_graph(Path("encoder.onnx"), "tokens")
        text, weights = "onnx:encoder.onnx", tmp_path / "encoder.onnx"
    run = finish(trained(tmp_path / "run", text))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = open_run(run.path, "cpu")
    encoder = run.sources["features"].encoder
    assert (
        encoder.name == f"{kind}:{weights}"
        and encoder.sha256 in (run.path / "features" / "about.json").read_text()
    )

    pictures = write_pictures(tmp_path, 2)
    assert (predict_files(run, pictures, force=True)["status"] == "ok").all()
    x, key, _ = run.read(pictures[0])
    found = explain(run, x, key)
    assert found.total.sum() + found.offset == pytest.approx(found.log_odds, abs=1e-4)
    report = write_report(run.path).read_text(encoding="utf-8")
    card = (run.path / "model-card.md").read_text(encoding="utf-8").replace("\\", "")
    for said in (str(weights), encoder.sha256[:16], encoder.licence):
        assert said in report and said in card

    before = run.sources["features"].fingerprint()
    weights.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"no such .*moved"):
        _ = open_run(run.path, "cpu").sources
    config = run.path / "config.toml"
    config.write_text(config.read_text().replace(str(weights), str(tmp_path / "moved")))
    sealed.accept(run.path)
    assert open_run(run.path, "cpu").sources["features"].fingerprint() == before
    if kind == "hf":
        shutil.rmtree(tmp_path / "moved")
        save_model("dinov2", tmp_path / "moved", seed=1)
    else:
        onnx_graph(tmp_path / "moved", "tokens", seed=1)
    with pytest.raises(ConfigError, match=r"learned with other options .sha256"):
        _ = open_run(run.path, "cpu").sources


def test_a_map_of_an_odd_number_of_cells_is_learned_too(model, tmp_path):
    run = trained(tmp_path / "run", f"hf:{model}", size=70)
    assert run.sources["features"].feature_maps.shape[1:] == (5, 5)
    images = run.images("val").subset([0, 1])
    table = run.evidence(run.standardise(images.images), images.keys)
    assert np.isfinite(table.blocks["features"].draws).all()


def test_names_of_files_become_absolute_and_names_of_models_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "dino").mkdir(parents=True)
    here = tmp_path.resolve()
    for text, stored in (
        ("hf:./model", f"hf:{here}/model"),
        ("hf:models/dino#-2", f"hf:{here}/models/dino#-2"),
        ("hf:facebook/dinov2-small", "hf:facebook/dinov2-small"),
        ("onnx:e.onnx#map", f"onnx:{here}/e.onnx#map"),
        ("lite0", "lite0"),
        ("timm:./resnet18", "timm:./resnet18"),
    ):
        assert with_absolute_path(text) == stored


def test_the_command_takes_an_encoder_from_a_folder(model, tmp_path):
    from fixtures.tiny_run import DATA

    arguments = ["train", "--data", DATA, "--out", str(tmp_path / "run"), "--encoder", f"hf:{model}x"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError) and "no such folder" in str(result.exception)


def test_what_was_asked_last_is_not_computed_again(monkeypatch):
    encoder, calls = open_encoder("lite0", 64, torch.device("cpu")), []
    whole = type(encoder.frozen).map
    monkeypatch.setattr(type(encoder.frozen), "map", lambda net, x: calls.append(len(x)) or whole(net, x))
    one, other = torch.rand(2, 3, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    first = [encoder(x) for x in (one, other, one, other)]
    assert calls == [3, 3] and torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    encoder(one.clone().requires_grad_()).sum().backward()
    assert calls == [3, 3, 3]
