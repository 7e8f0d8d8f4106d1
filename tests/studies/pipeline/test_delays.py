"""Which delay each parameter gets."""

import compensations
import jax
import pytest

pytest.importorskip("flax")

from flax import nnx
from pipeline import delays

import dcasgd_jax as dc
from dcasgd_jax.integrations.transformer import Transformer
from dcasgd_jax.transforms import delays as known_delays


def params_of(num_blocks):
    """Shapes alone."""
    make = lambda: Transformer(
        vocabulary=5, context=4, width=4, num_blocks=num_blocks, num_heads=2, rngs=nnx.Rngs(0)
    )
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))


def by_path(tree):
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_every_parameter_has_the_delay_of_its_stage(num_blocks):
    params = params_of(num_blocks)
    found = by_path(delays.make_delay(delays.STAGES, num_blocks)(params))
    expected = {
        "embedding/embedding": num_blocks + 1,
        "positions/embedding": num_blocks + 1,
        "norm/scale": 0,
        "head/kernel": 0,
    }
    for block in range(num_blocks):
        for leaf in (
            *("attention/out/kernel", "attention/query_key_value/kernel", "attention_norm/scale"),
            *("up/kernel", "down/kernel", "perceptron_norm/scale"),
        ):
            expected[f"blocks/{block}/{leaf}"] = num_blocks - block
    assert found == expected
    assert delays.largest(delays.STAGES, num_blocks) == max(expected.values())


@pytest.mark.parametrize(("name", "delay"), [("0", 0), ("8", 8), (delays.TWO_BUFFERS, 1)])
def test_the_others_are_uniform(name, delay):
    found = known_delays.delay_of_each_leaf(delays.make_delay(name, 2), params_of(2))
    assert set(by_path(found).values()) == {delay}
    assert delays.largest(name, 2) == delay


def test_a_parameter_of_another_model_is_named():
    of_stages = delays.make_delay(delays.STAGES, 2)
    with pytest.raises(ValueError, match="'decoder' is no parameter of the transformer"):
        of_stages({"decoder": 1.0})
    with pytest.raises(ValueError, match="'blocks/7' the stage 8"):
        dc.delay_gradients(compensations.explicit(1.0), of_stages).init({"blocks": {7: 1.0}})
