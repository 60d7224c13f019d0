"Adapters in one piece against peft's own layers: values, gradients, which layers, and what is saved."
import pytest, torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from llmft.model.fused import fuse_adapters, undo_fusing

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
IDS = torch.arange(3, 43)[None]


def make_model(dtype=torch.float32, base=None, **options):
    torch.manual_seed(0)
    base = base or LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype)
    model = get_peft_model(base, LoraConfig(**{'target_modules': 'all-linear', 'lora_alpha': 32} | options))
    for name, p in model.named_parameters():
        if p.requires_grad: p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))/8
    return model.train()


def loss_and_gradients(model, amp=None):
    model.zero_grad()
    with torch.autocast('cpu', amp, enabled=amp is not None): loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach()[None].float(), *gradients])


@pytest.mark.parametrize('options,layers', [
    ({}, 14), (dict(use_rslora=True, r=4), 14), (dict(target_modules=['q_proj', 'v_proj']), 4),
    (dict(target_modules=['down_proj']), 2), (dict(target_modules=['gate_proj', 'up_proj']), 4)], ids=str)
def test_gradients_are_those_of_peft(options, layers):
    model = make_model(**options)
    expected = loss_and_gradients(model)
    assert fuse_adapters(model) == layers
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=1e-4, atol=1e-6)
    undo_fusing(model)
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize('amp', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('targets,layers', [('all-linear', 14), (['gate_proj', 'up_proj', 'down_proj'], 6)], ids=str)
def test_under_autocast(amp, targets, layers):
    model = make_model(amp, target_modules=targets)
    expected = loss_and_gradients(model, amp)
    with torch.autocast('cpu', amp): assert fuse_adapters(model) == layers
    assert (loss_and_gradients(model, amp) - expected).norm() < .02*expected.norm()


def test_weights_of_four_bits(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    in_4_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type='nf4')
    model = make_model(base=AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=in_4_bits))
    expected = loss_and_gradients(model)
    assert fuse_adapters(model) == 14
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('options', [dict(use_dora=True), dict(lora_dropout=.1), dict(lora_bias=True)], ids=str)
def test_other_adapters_stay_with_peft(options):
    assert fuse_adapters(make_model(**options)) == 0


def test_16_bits_without_autocast_stay_with_peft():
    model = make_model(torch.bfloat16)
    expected = loss_and_gradients(model)
    fuse_adapters(model)
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=0, atol=0)


def test_an_adapter_may_be_switched_off_and_merged():
    model = make_model()
    def scores():
        return model(input_ids=IDS).logits.detach()
    with model.disable_adapter(): without = scores()
    expected = scores()
    fuse_adapters(model)
    with model.disable_adapter(): torch.testing.assert_close(scores(), without, rtol=0, atol=0)
    with torch.no_grad(): torch.testing.assert_close(scores(), expected, rtol=0, atol=0)
    model.merge_adapter()
    torch.testing.assert_close(scores(), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(scores(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('reentrant', [True, False])
def test_layers_that_are_computed_twice(reentrant):
    model = make_model()
    expected = loss_and_gradients(model)
    fuse_adapters(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({'use_reentrant': reentrant})
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=1e-4, atol=1e-6)


def test_what_is_saved_is_the_adapter(tmp_path):
    model = make_model()
    fuse_adapters(model)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path)
    with torch.no_grad(): torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_layer_that_does_something_else_is_left_as_it_is():
    class Odd(torch.nn.Module):
        def __init__(self, part): super().__init__(); self.__dict__.update(part.__dict__)
        def forward(self, x): return 2*self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    model = make_model()
    for layer in model.get_base_model().model.layers: layer.mlp = Odd(layer.mlp)
    expected = loss_and_gradients(model)
    fuse_adapters(model)
    assert not any('forward' in vars(layer.mlp) for layer in model.get_base_model().model.layers)
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=1e-4, atol=1e-6)


def test_a_gate_with_limits_in_one_layer_is_left_as_it_is():
    class Limited(torch.nn.Module):
        def __init__(self, part, limit):
            super().__init__()
            self.__dict__.update(part.__dict__)
            self.limit = limit
        def forward(self, x):
            gate = self.act_fn(self.gate_proj(x).clamp(max=self.limit))
            return self.down_proj(gate * self.up_proj(x).clamp(-self.limit, self.limit))
    model = make_model()
    for layer, limit in zip(model.get_base_model().model.layers, (1e9, 10.)): layer.mlp = Limited(layer.mlp, limit)
    assert fuse_adapters(model) == 14
    mlps = [layer.mlp for layer in model.get_base_model().model.layers]
    assert ['forward' in vars(mlp) for mlp in mlps] == [True, False] and 'forward' in vars(mlps[1].down_proj)


def test_twice_and_beside_other_hooks():
    from accelerate.hooks import ModelHook, add_hook_to_module
    model, seen = make_model(), []
    class Seen(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(module)
            return args, kwargs
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    add_hook_to_module(layer, Seen())
    assert (fuse_adapters(model), fuse_adapters(model)) == (14, 0)
    undo_fusing(model)
    seen.clear()
    loss_and_gradients(model)
    assert seen == [layer]
