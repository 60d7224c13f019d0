"Models that take more than text, attention that a class has, experts, and the table of architectures."
import pytest, torch
from peft import PeftModel
from tests.model import architectures
from tests.model.architectures import ARCHITECTURES, difference, find_out, hf_config_of, plain, save_model, stored
from llmft.commands.check import check_run
from llmft.core import UserError
from llmft.inference.load import load_run
from llmft.memory.plan import attention_for, plan_memory
from llmft.model.adapters import add_adapter, parameter_report
from llmft.model.architectures import bypassed_parts, check_packing, empty_model, model_class, supported_attention
from llmft.model.base import choose_attention, detect_hardware, load_base, load_hf_config
from llmft.model.gpus import find_gpu
from llmft.model.targets import describe_targets, target_modules
from llmft.training.train import finetune
from tests.marks import slow_are
from tests.tiny import alpaca_rows, save_rows, tiny_config


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Folders with models of random weights, made when they are asked for."
    root = tmp_path_factory.mktemp('models')
    def folder(kind): return root/kind if (root/kind).exists() else save_model(kind, root/kind)
    return folder

@pytest.fixture
def settings(folders, tmp_path):
    rows = save_rows(tmp_path/'rows.jsonl', alpaca_rows(12))
    def make(kind, **keys):
        short = dict(adapter='lora', bf16=False, lora_r=4, max_steps=2, val_set_size=0, save_strategy='no',
                     sequence_len=128, sample_packing=False)
        return tiny_config(folders(kind), rows, tmp_path/'run', **short | keys)
    return make


# -- models that also take pictures or sound

MULTIMODAL = ['gemma3', 'mistral3', 'qwen3_vl', 'smolvlm', 'voxtral']

@pytest.mark.parametrize('kind', MULTIMODAL)
def test_adapters_sit_in_the_language_part(settings, kind):
    config = settings(kind)
    tuned = add_adapter(load_base(config), config)
    parts = bypassed_parts(tuned.get_base_model())
    adapted = [name.removeprefix('base_model.model.') for name, m in tuned.named_modules() if hasattr(m, 'lora_A')]
    assert parts and len(adapted) == 14 # seven layers in each of two blocks
    assert not [name for name in adapted if name.startswith(tuple(parts))]
    report = {kind: trained for kind, trained, *_ in parameter_report(tuned).layers}
    assert all(report[part] == 0 for part in parts)

@pytest.mark.parametrize('kind', ['gemma3', 'mistral3'])
@pytest.mark.parametrize('keys', [
    {'lora_target_modules': ['q_proj', 'v_proj']}, {'lora_target_modules': '.*(q_proj|up_proj)'},
    {'lora_target_modules': 'all-linear'}, {'lora_target_modules': ['q_proj'], 'peft_layers_to_transform': [1]},
    {'adapter': 'full'}], ids=str)
def test_nothing_else_is_trained(settings, kind, keys):
    config = settings(kind, **keys)
    tuned = add_adapter(load_base(config), config)
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert trained and not [name for name in trained if 'vision' in name or 'projector' in name]
    logits = tuned(input_ids=torch.arange(20, 40)[None], use_cache=False).logits
    logits.float().pow(2).sum().backward() # what is trained gets a gradient
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)

def test_a_pattern_for_another_part(settings):
    with pytest.raises(UserError, match='no layer has a name that fits'):
        target_modules(load_base(settings('gemma3')), settings('gemma3', lora_target_modules='.*vision_tower.*q_proj'))

@pytest.mark.parametrize('kind, said', [
    ('gemma3', 'Only the language part is trained. model.vision_tower, model.multi_modal_projector'),
    ('qwen3_5', 'Only the language part is loaded, as `Qwen3_5ForCausalLM`: what vision_config describe'),
    ('llama4', 'Only the language part is loaded')])
def test_what_is_left_out_is_said(settings, kind, said):
    config, lines = settings(kind, max_steps=1), []
    finetune(config, say=lambda line: lines.append(str(line)), force=True)
    for text in ('\n'.join(lines), str(plan_memory(config, 'T4')), str(check_run(config))): assert said in text

def test_text_models_have_one_part():
    for kind in ('llama', 'mixtral', 'gpt2', 'mpt', 'bloom'):
        assert bypassed_parts(empty_model(hf_config_of(kind))) == {}

@pytest.mark.parametrize('kind', ['t5', 'bart', 'whisper'])
def test_encoders_with_decoders(kind):
    with pytest.raises(UserError, match='reads one text and writes another'):
        model_class(load_hf_config_of(kind))

def load_hf_config_of(kind):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    return CONFIG_MAPPING[kind]()


# -- attention

NO_SDPA = ['gpt_oss', 'bloom', 'gpt_neo', 'mpt', 'mamba', 'gemma2']
NO_FLASH = ['bloom', 'mpt', 'mamba', 'gemma3', 'llama4']

@pytest.mark.parametrize('kind', [*NO_SDPA, 'gemma3', 'llama'])
@pytest.mark.parametrize('requested', ['auto', 'sdpa', 'flash_attention_2', 'flex_attention', 'eager'])
def test_plan_and_run_take_the_same_attention(settings, kind, requested):
    config = settings(kind, attn_implementation=requested)
    hw, hf_config = detect_hardware(config), load_hf_config(config)
    assert hw.attention == attention_for(config, hf_config, find_gpu('CPU')) != 'flash_attention_2'
    assert load_base(config, hw=hw).config.get_text_config()._attn_implementation == hw.attention
    reason = next(c.why for c in hw.choices if c.what == 'attention')
    if kind in NO_SDPA and requested != 'eager': assert hw.attention == 'eager' and 'no `sdpa`' in reason

@pytest.mark.parametrize('kind', [*NO_FLASH, 'llama', 'qwen3'])
def test_flash_attention_where_the_class_has_it(kind):
    chosen, why = choose_attention('cuda', (8, 0), 'flash_attention_2', torch.bfloat16, hf_config_of(kind), True)
    has_it = kind not in NO_FLASH
    assert (chosen == 'flash_attention_2') == has_it and (has_it or 'the code of this model has no' in why)
    auto, why = choose_attention('cuda', (8, 0), 'auto', torch.bfloat16, hf_config_of(kind), True)
    assert auto == chosen and (has_it or 'no `' in why)

def test_all_parts_count(): # the language part of Gemma 3 has FlashAttention, the whole has not
    assert supported_attention(hf_config_of('gemma3')) == {'eager', 'sdpa', 'flex_attention'}


# -- packing

@pytest.mark.parametrize('kind', ['mamba', 'qwen3_5', 'gpt_oss', 'bloom', 'qwen2_5_vl'])
def test_texts_that_would_mix(settings, kind, tmp_path):
    with pytest.raises(UserError, match='Set `sample_packing: false`'):
        finetune(settings(kind, sample_packing=True), say=None, force=True)
    assert not (tmp_path/'run').exists()

def test_texts_that_stay_apart(settings):
    for kind in ('llama', 'gemma3', 'mixtral'):
        config = settings(kind, sample_packing=True)
        assert check_packing(load_base(config), config) is None


# -- experts

MOE = slow_are({'qwen3_moe', 'qwen3_vl_moe', 'llama4'}, ['mixtral', 'qwen3_moe', 'gpt_oss', 'qwen3_vl_moe', 'llama4'])

@pytest.mark.parametrize('kind', MOE)
def test_what_is_done_with_experts_is_said(settings, kind):
    config = settings(kind, adapter='qlora')
    lines = []
    finetune(settings(kind, adapter='qlora', max_steps=1), say=lambda line: lines.append(str(line)), force=True)
    for text in ('\n'.join(lines), str(plan_memory(config, 'T4')), str(check_run(config))):
        assert 'no layers: they stay in 16 bits' in text and '`quantize_moe_experts: true` keeps them in 4 bits' in text
        assert 'get no adapter. `lora_target_parameters: [' in text
    assert any('NF4:' in line and 'q_proj' in line for line in lines)

@pytest.mark.parametrize('kind', MOE)
def test_experts_in_4_bits(settings, kind, tmp_path):
    "They are as small as the plan says, and the adapter of the layers loads in peft."
    config = settings(kind, adapter='qlora', quantize_moe_experts=True)
    report = parameter_report(load_base(config)).frozen_formats
    assert {'gate_up_proj', 'down_proj'} <= {*report['NF4']}
    assert architectures.weights_error(config, load_hf_config(config)) < .01
    run = finetune(config, say=None, force=True)
    chat = load_run(run.path)
    base = load_base(config)
    assert difference(chat.model, base) > 1e-3
    again = PeftModel.from_pretrained(base, run.path/'adapter')
    for _ in range(2): assert difference(again, chat.model) < 1e-3 # a call leaves nothing behind
    assert not [p for m in again.modules() for p in getattr(m, 'parametrizations', {}).values() if len(p) > 1]
    assert difference(plain(config.base_model, run), chat.model) > 0 # its base has other weights, and it loads

@pytest.mark.parametrize('keys, message', [
    (dict(quantize_moe_experts=True, adapter='lora'), 'Set `adapter: qlora`'),
    (dict(quantize_moe_experts=True, adapter='lora', load_in_8bit=True), 'Set `adapter: qlora`'),
    (dict(quantize_moe_experts=True, adapter='qlora', lora_target_parameters=['mlp.experts.gate_up_proj']),
        'cannot have adapters'),
    (dict(lora_target_parameters=['mlp.experts.gate_up_proj'], lora_dropout=.1), 'Set `lora_dropout: 0`'),
    (dict(lora_target_parameters=['mlp.experts.gate_up_proj'], peft_use_dora=True), 'DoRA works on layers only')],
    ids=str)
def test_experts_that_cannot(settings, keys, message):
    with pytest.raises(UserError, match=message): check_run(settings('mixtral', **keys))

def test_no_experts(settings):
    with pytest.raises(UserError, match='this model has no experts'):
        check_run(settings('llama', adapter='qlora', quantize_moe_experts=True))


# -- names of layers

USUAL = 'q_proj k_proj v_proj o_proj gate_proj up_proj down_proj'.split()

@pytest.mark.parametrize('kind, passed_over', [
    ('phi3', {'q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj'}),
    ('gpt_oss', {'gate_proj', 'up_proj', 'down_proj'}), ('mixtral', {'gate_proj', 'up_proj', 'down_proj'}),
    ('llama', set())])
def test_a_name_that_fits_nothing_is_a_note(settings, kind, passed_over):
    config, model = settings(kind, lora_target_modules=USUAL), empty_model(hf_config_of(kind))
    assert {*target_modules(model, config)} == {*USUAL} - passed_over
    notes = [*describe_targets(model, config)]
    assert len(notes) == len(passed_over) and all(any(f'`{name}`' in note for note in notes) for name in passed_over)
    assert add_adapter(load_base(config), config).peft_config['default'].target_modules == {*USUAL} - passed_over

@pytest.mark.parametrize('targets, message', [
    (['q_prj'], 'no layer called `q_prj`. Did you mean `q_proj`'), (['mlp'], 'no layer called `mlp`'),
    (['query_key_value', 'c_attn'], 'no layer called `query_key_value`'), ('q_proj', r'write a list: \[q_proj\]'),
    ('self_attn', 'regular expression for whole names'), ('*_proj', 'is not a regular expression'),
    (['q_proj', 'lm_head'], r'`lora_modules_to_save: \[lm_head\]`'), ('.*(q_proj|lm_head)', 'would learn nothing')],
    ids=str)
def test_names_that_are_refused(settings, targets, message):
    with pytest.raises(UserError, match=message): check_run(settings('llama', lora_target_modules=targets))

def test_all_linear(settings):
    model = empty_model(hf_config_of('llama'))
    assert target_modules(model, settings('llama', lora_target_modules='all-linear')) == sorted(USUAL)


# -- the table

def test_the_table_is_of_these(): assert {*stored()} <= {*ARCHITECTURES} and [*stored()] == sorted(stored())

@pytest.mark.slow
@pytest.mark.parametrize('model_type', ARCHITECTURES)
def test_architecture(model_type, tmp_path):
    "From the files to the merged model; `benchmarks/architectures.py` writes the table."
    found = find_out(model_type, tmp_path)
    assert found == stored().get(model_type, found)
