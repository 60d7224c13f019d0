"A plan from a few of the equal layers is the plan from all of them, byte for byte; what stands for a quantized base."
import pytest
from llmft.config.config import load_config
from llmft.memory import plan
from llmft.memory.fit import fit_to_gpu
from llmft.memory.layers import names_layers
from llmft.memory.plan import plan_memory
from llmft.model.base import load_hf_config
from llmft.model.gpus import find_gpu
from tests.marks import slow

SIZES = dict(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False)
LLAMA_70B = dict(
    model_type='llama', vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False)
MIXTRAL = dict(
    model_type='mixtral', vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32768, num_local_experts=8,
    tie_word_embeddings=False)


def run_config(**options):
    return load_config({'base_model': 'x', 'datasets': [{'path': 'rows.jsonl'}], 'adapter': 'lora', 'lora_r': 8,
                        'micro_batch_size': 2, 'sequence_len': 640, 'val_set_size': .1} | options)


@pytest.mark.parametrize('kind,layers,gpu,options', [
    ('llama', 11, 'T4', dict(adapter='qlora')), slow('llama', 10, 'L4', dict(gradient_checkpointing=False)),
    slow('llama', 10, 'CPU', {}), ('llama', 10, 'T4', dict(adapter='full', gradient_checkpointing=False)),
    slow('qwen3', 10, 'L4', dict(gradient_accumulation_steps=4)), slow('gpt_neox', 10, 'L4', {}),
    slow('phi3', 10, 'L4', {}),
    ('gemma2', 12, 'L4', {}), slow('smollm3', 24, 'L4', {})], ids=str) # these two repeat after 2 and 4 layers
def test_few_layers_are_as_good_as_all(kind, layers, gpu, options):
    config, gpu = run_config(**options), find_gpu(gpu)
    hf_config = load_hf_config(config, dict(SIZES, model_type=kind, num_hidden_layers=layers))
    assert plan._pattern_of(config, hf_config, gpu)
    peaks, totals, facts = plan._step_peaks(config, hf_config, gpu)
    whole, *others = plan._run_layers(config, hf_config, plan._gpu_class(gpu), None, None)
    assert {step: parts for step, (_, _, parts) in peaks.items()} == {
        step: parts for step, (_, _, parts) in whole.items() if step != 'start'}
    assert [peaks[step][1] for step in ('forward', 'backward')] == [whole[step][1] for step in ('forward', 'backward')]
    assert others == [totals, facts]


@pytest.mark.parametrize('options,expected', [
    (dict(), False), (dict(lora_target_modules=['w1', 'w2']), False),
    (dict(lora_target_modules=r'.*\.\d+\.mlp.*'), False),
    (dict(lora_target_modules=['layers.3.mlp.up_proj']), True), (dict(peft_layers_to_transform=[1]), True),
    (dict(lora_rank_pattern={r'layers\.1\..*': 4}), True),
    (dict(peft_layer_replication=[[0, 2], [1, 2]]), True)], ids=str)
def test_runs_that_name_layers(options, expected): assert names_layers(run_config(**options)) is expected


def test_a_layer_that_is_named_is_planned():
    hf_config = dict(SIZES, model_type='llama', num_hidden_layers=12)
    def trained(**options): return plan_memory(run_config(**options), 'T4', hf_config).between_steps['adapter']
    assert trained(peft_layers_to_transform=[10, 11])*6 == trained()


@pytest.mark.slow
def test_seventy_billion_weights_are_fitted():
    config = load_config('code-llama-7b', micro_batch_size=10, gradient_accumulation_steps=1)
    fitted = fit_to_gpu(config, 'H100', LLAMA_70B, say=None)
    planned = plan_memory(fitted, 'H100', LLAMA_70B)
    assert planned.fits() and 'layers.79' in planned.peak_module
    assert fitted.micro_batch_size*fitted.gradient_accumulation_steps == 10


@pytest.mark.slow
def test_a_model_too_large_for_its_weights_alone():
    from llmft.core import UserError
    with pytest.raises(UserError, match='Nothing makes this run fit on T4'):
        fit_to_gpu(load_config('code-llama-7b', adapter='lora', load_in_4bit=False), 'T4', MIXTRAL)


SMALL = dict(SIZES, model_type='llama', num_hidden_layers=4, hidden_size=256, intermediate_size=512)


@pytest.mark.parametrize('quantization,bits', [
    ({'quant_method': 'awq', 'bits': 4, 'group_size': 128}, 4), slow({'quant_method': 'gptq', 'bits': 8}, 8),
    slow({'quant_method': 'fp8', 'weight_block_size': [128, 128]}, 8), slow({'quant_method': 'mxfp4'}, 16),
    ({'quant_method': 'bitsandbytes', 'load_in_4bit': True, 'bnb_4bit_quant_type': 'nf4'}, 4)], ids=str)
def test_a_base_that_is_quantized_already(quantization, bits):
    "The weights of the linear layers have the bits of the base, whatever the YAML says."
    def weights(config, base): return plan_memory(config, 'T4', base).parts['weights']
    linear = 4*(256*64 + 2*256*32 + 64*256 + 3*256*512)
    plain, stored = weights(run_config(), SMALL), weights(run_config(), SMALL | {'quantization_config': quantization})
    assert plain - stored == pytest.approx(linear*(16 - bits)/8, rel=.13)
    assert weights(run_config(adapter='qlora'), SMALL | {'quantization_config': quantization}) == stored


@pytest.mark.parametrize('options,bytes_more', [
    (dict(bnb_4bit_use_double_quant=False), 4/64 - 1/64 - 4/64/256), (dict(bnb_4bit_quant_type='fp4'), 0)], ids=str)
def test_settings_of_bitsandbytes_are_planned(options, bytes_more):
    def weights(**options): return plan_memory(run_config(adapter='qlora', **options), 'CPU', SMALL).parts['weights']
    linear, tables = 4*(256*64 + 2*256*32 + 64*256 + 3*256*512), 28*(256 + 1)*4*bool(bytes_more) # one for each layer
    more = weights(bnb_config_kwargs=options) - weights()
    assert more == pytest.approx(linear*bytes_more - tables, rel=.01, abs=0)


def test_layers_that_are_left_in_16_bits_are_planned():
    def weights(names):
        skipped = {'llm_int8_skip_modules': names}
        return plan_memory(run_config(adapter='qlora', bnb_config_kwargs=skipped), 'T4', SMALL).parts['weights']
    more = weights(['lm_head', 'down_proj']) - weights(['lm_head'])
    assert more == pytest.approx(4*(256*512*(2 - .516) - 257*4), rel=.01)


def test_gpt2_in_four_bits():
    gpt2 = dict(model_type='gpt2', vocab_size=100, n_embd=64, n_layer=2, n_head=2)
    planned = plan_memory(run_config(adapter='qlora', sequence_len=64), 'T4', gpt2)
    assert planned.parts['weights'] < plan_memory(run_config(sequence_len=64), 'T4', gpt2).parts['weights']
