"""Encoders of texts: pruned by heads and units, loaded from folders of their pre-training, fused exactly."""

import io
import json

import pytest
import torch

from prunefuse_ray import networks
from prunefuse_ray.networks import encoders
from prunefuse_ray.networks.inference import scoring_form
from tests.support.encoders import KINDS, config

transformers = pytest.importorskip("transformers")

VOCABULARY, LENGTH, CLASSES = 97, 24, 3


def spec_of(kind="bert", **sizes):
    content = config(kind, vocabulary=VOCABULARY, **sizes).to_json_string().encode()
    return encoders.encoder_spec("folder", content, classes=CLASSES, length=LENGTH)


@torch.no_grad()
def logits(network, x):
    return network.eval()(x)


@pytest.fixture(scope="module", params=KINDS)
def cut(request):
    spec = spec_of(request.param)
    dense = networks.build(spec, seed=1)
    return spec, dense, networks.prune(dense, spec, networks.PruningSpec(ratio=0.5))


def test_every_kind_is_pruned_saved_and_fused_back_to_the_last_weight(cut):
    spec, dense, proxy = cut
    heads = next(encoders.groups(dense))
    assert len(proxy.kept[f"{heads.read_by}.weight"][1]) == heads.size * 2, "two of four heads"
    with torch.no_grad():
        for parameter in proxy.network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    again = networks.from_files(networks.to_files(proxy))
    assert again.spec == spec
    x = networks.example_input(spec, samples=3, seed=2)
    assert torch.equal(logits(again.network, x), logits(proxy.network, x))
    for rule in ("keep", "function_preserving", "scaled"):
        fused = networks.fuse(dense, proxy, rule)
        back = networks.gather(fused.state_dict(), proxy.kept)
        assert all(torch.equal(back[name], tensor) for name, tensor in proxy.network.state_dict().items()), rule
        if rule == "function_preserving":
            assert torch.allclose(logits(fused, x), logits(proxy.network, x), atol=1e-5)


def test_a_proxy_computes_what_the_encoder_does_without_its_other_heads_and_units(cut):
    spec, dense, proxy = cut
    fresh = networks.prune(dense, spec, proxy.pruning)
    silent = networks.from_files(networks.to_files(networks.Dense(network=dense, spec=spec))).network
    with torch.no_grad():
        for group in encoders.groups(silent):
            weight = silent.get_parameter(f"{group.read_by}.weight")
            others = torch.ones(weight.shape[1], dtype=torch.bool)
            others[fresh.kept[f"{group.read_by}.weight"][1]] = False
            weight[:, others] = 0
    x = networks.example_input(spec, samples=3, seed=3)
    assert torch.allclose(logits(silent, x), logits(fresh.network, x), atol=1e-5)
    assert not torch.allclose(logits(dense, x), logits(fresh.network, x), atol=1e-5)


def test_what_is_behind_the_end_of_a_text_changes_nothing(cut):
    spec, dense, _ = cut
    x = networks.example_input(spec, samples=3, seed=4)
    short = x[:, : int((x > 0).any(0).sum())]
    assert torch.allclose(logits(dense, x), logits(dense, short), atol=1e-5)
    features, found = networks.features_and_logits(dense.eval(), x)
    assert torch.allclose(found, logits(dense, x), atol=1e-5)
    assert features.ndim == 2


def test_training_cuts_a_batch_to_its_longest_text(monkeypatch):
    spec = spec_of(length=LENGTH)
    network, seen = networks.build(spec, seed=0).train(), []
    network.bert.embeddings.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    x = networks.example_input(spec)
    x[:, 9:] = 0
    network(x)
    network.eval()(x)
    assert seen == [16, LENGTH]


def test_heads_are_kept_by_importance_and_ties_go_by_position():
    spec = spec_of()
    dense = networks.build(spec, seed=0)
    with torch.no_grad():
        for group in encoders.groups(dense):
            for name in group.made_by:
                dense.get_parameter(f"{name}.weight").fill_(1.0)
            weight = dense.get_parameter(f"{group.read_by}.weight").fill_(0.0)
            weight[:, -group.size :] = 1.0  # the last is the most important, the others are alike
    for steps in (1, 3):
        kept = networks.prune(dense, spec, networks.PruningSpec(ratio=0.5, steps=steps)).kept
        for group in encoders.groups(dense):
            found = kept[f"{group.read_by}.weight"][1]
            first = torch.arange((group.count // 2 - 1) * group.size)
            last = torch.arange((group.count - 1) * group.size, group.count * group.size)
            assert found.tolist() == torch.cat([first, last]).tolist()


@pytest.mark.parametrize(
    ("ratio", "round_to", "heads", "units"), [(0.5, 8, 6, 24), (0.8, 8, 2, 8), (0.5, 16, 6, 32), (0.8, 32, 4, 32)]
)
def test_what_is_rounded_are_channels_not_heads(ratio, round_to, heads, units):
    """Of 12 heads with 8 channels each."""
    spec = spec_of(width=96, heads=12, units=50, layers=1)
    dense = networks.build(spec, seed=0)
    kept = networks.prune(dense, spec, networks.PruningSpec(ratio=ratio, round_to=round_to)).kept
    found = [len(kept[f"{group.read_by}.weight"][1]) // group.size for group in encoders.groups(dense)]
    assert found == [heads, units]


def test_importances_that_heads_do_not_have_and_committees_are_refused_by_name():
    spec = spec_of()
    dense = networks.build(spec, seed=0)
    with pytest.raises(networks.NetworkError, match=r"pruning\.importance: bn_scale .* use another one"):
        networks.prune(dense, spec, networks.PruningSpec(ratio=0.5, importance="bn_scale"))
    with pytest.raises(networks.NetworkError, match=r"pruning\.committee: .* normalizes over channels"):
        networks.split(dense, spec, networks.PruningSpec(ratio=0.5), 2)
    one = spec_of(heads=1)
    with pytest.raises(networks.NetworkError, match="one head, which cannot be pruned"):
        networks.prune(networks.build(one, seed=0), one, networks.PruningSpec(ratio=0.5))
    for importance in ("random", "fpgm", "lamp", "magnitude_l1"):
        networks.prune(dense, spec, networks.PruningSpec(ratio=0.5, importance=importance, round_to=2))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"model_type": "gpt2"}, r"of the kind 'gpt2'.* use one of bert,"),
        ({"model_type": "bert", "auto_map": {"AutoModel": "code.Model"}}, r"code of its own .* never run"),
        ({"model_type": "bert", "is_decoder": True}, "is a decoder"),
        ({"model_type": "bert", "max_position_embeddings": 16}, "24 tokens, but the encoder reads at most 16"),
        ({"model_type": "roberta", "max_position_embeddings": 25, "pad_token_id": 1}, "at most 23"),
        ({"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}, "cannot be built from this config"),
        ({"model_type": "roberta", "pad_token_id": None}, "has no pad_token_id, from which a roberta counts"),
        ([], "no configuration of an encoder"),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_one_message(tree, said):
    with pytest.raises(networks.NetworkError, match=said) as refused:
        networks.build(
            encoders.encoder_spec("folder", json.dumps(tree).encode(), classes=CLASSES, length=LENGTH), seed=0
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_pre_training_are_taken_over_and_a_new_head_is_told(kind, tmp_path):
    settings = config(kind, vocabulary=VOCABULARY)
    torch.manual_seed(0)
    learned = transformers.AutoModelForMaskedLM.from_config(settings)
    learned.save_pretrained(tmp_path)
    spec = spec_of(kind)
    network = networks.build(spec, seed=0)
    loaded = networks.load_trained(network, spec, (tmp_path / "model.safetensors").read_bytes())
    assert any(name.startswith("classifier") for name in loaded.replaced)
    base = {n: t for n, t in getattr(learned, learned.base_model_prefix).state_dict().items() if "pooler" not in n}
    found = getattr(network, network.base_model_prefix).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in base.items())
    alone = networks.build(spec, seed=0)  # of the base model alone, in the names that the first BERT had
    networks.load_trained(alone, spec, _torch_file(base))
    found = getattr(alone, alone.base_model_prefix).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in base.items())


def _torch_file(state):
    buffer = io.BytesIO()
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
           for n, t in state.items()}  # fmt: skip
    torch.save(old | {"embeddings.position_ids": torch.arange(40)[None]}, buffer)
    return buffer.getvalue()


def test_a_fused_encoder_is_read_by_transformers_itself(tmp_path):
    spec = spec_of()
    dense = networks.build(spec, seed=0)
    fused = networks.fuse(dense, networks.prune(dense, spec, networks.PruningSpec(ratio=0.5)), "keep")
    files = networks.to_files(networks.Dense(network=fused, spec=spec))
    (tmp_path / "model.safetensors").write_bytes(files[networks.WEIGHTS_FILE])
    (tmp_path / "config.json").write_text(json.dumps(json.loads(spec.config) | {"num_labels": CLASSES}))
    read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, local_files_only=True).eval()
    x = networks.example_input(spec, samples=2)
    with torch.no_grad():
        theirs = read(input_ids=(x - 1).clamp(min=0), attention_mask=(x > 0).long()).logits
    assert torch.allclose(theirs, logits(fused, x), atol=1e-6)


def test_in_bf16_tokens_are_turned_by_the_same_angles():
    spec = spec_of("modernbert")
    network = networks.build(spec, seed=0)
    form = scoring_form(network, "bf16", networks.example_input(spec, samples=2), features=False)
    exact = {n.rpartition(".")[2]: b for n, b in network.named_buffers() if n.endswith("inv_freq")}
    found = {n.rpartition(".")[2]: b for n, b in form.named_buffers() if n.endswith("inv_freq")}
    assert found.keys() == exact.keys() != set()
    assert all(torch.equal(found[name], exact[name]) for name in exact)
