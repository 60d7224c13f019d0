"Models of many architectures, tiny and with random weights, and what is found out about each."
import json, shutil
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from llmft.core import UserError
from llmft.export.merge import merge_adapter
from llmft.inference.load import load_run
from llmft.memory.dryrun import _storage_bytes, memory_peaks
from llmft.memory.plan import attention_for, dry_run
from llmft.model.adapters import add_adapter, parameter_report
from llmft.model.architectures import auto_class, bypassed_parts, check_packing, empty_model
from llmft.model.base import load_base, load_hf_config
from llmft.model.experts import expert_targets, expert_weights
from llmft.model.gpus import find_gpu
from llmft.training.train import finetune
from tests.tiny import alpaca_rows, save_rows, small_tokenizer, tiny_config

RESULTS = Path(__file__).parents[2]/'benchmarks'/'results'/'architectures.json'
TEXT = dict(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
            pad_token_id=0, tie_word_embeddings=False)
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28,
              patch_size=14)
QWEN_VISION = dict(depth=1, hidden_size=32, intermediate_size=64, out_hidden_size=64, num_heads=2)
MROPE = dict(rope_parameters=dict(rope_type='default', rope_theta=1e4, mrope_section=[2, 3, 3]))
ROUTED = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1)
LATENT = dict(kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, head_dim=8,
              num_key_value_heads=4, first_k_dense_replace=1, n_shared_experts=1)
SSM = dict(mamba_n_heads=4, mamba_d_head=32, mamba_n_groups=1, mamba_d_state=16)
GPT = dict(n_embd=64, n_layer=2, n_head=4, n_positions=512)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
DELTA = dict(layer_types=['linear_attention', 'full_attention'], linear_num_value_heads=2, linear_num_key_heads=2,
             linear_key_head_dim=16, linear_value_head_dim=16)


def both(text, vision, **others): return dict(text_config=TEXT | text, vision_config=vision, **others)

ARCHITECTURES = { # model_type -> sizes beside those of `TEXT`
    'apertus': {}, 'arcee': {}, 'cohere': {}, 'cohere2': {}, 'ernie4_5': {}, 'exaone4': {}, 'gemma': {}, 'gemma2': {},
    'gemma3_text': {}, 'glm': {}, 'glm4': {}, 'granite': {}, 'helium': {}, 'hunyuan_v1_dense': {}, 'llama': {},
    'mistral': {}, 'ministral3': {}, 'nemotron': {}, 'olmo2': {}, 'olmo3': {}, 'phi': {}, 'phi3': {}, 'qwen2': {},
    'qwen3': {}, 'seed_oss': {}, 'smollm3': {}, 'stablelm': {}, 'starcoder2': {}, 'gpt_neox': {},
    'gpt2': GPT, 'gpt_bigcode': GPT, 'gptj': dict(GPT, rotary_dim=8), 'bloom': dict(n_layer=2, n_head=4),
    'gpt_neo': dict(num_layers=2, num_heads=4, attention_types=[[['global', 'local'], 1]]),
    'mpt': dict(d_model=64, n_heads=4, n_layers=2, max_seq_len=512), 'opt': dict(ffn_dim=128, word_embed_proj_dim=64),
    'mixtral': dict(num_local_experts=4), 'qwen3_moe': EXPERTS, 'olmoe': EXPERTS,
    'granitemoe': dict(num_local_experts=4),
    'qwen2_moe': dict(EXPERTS, shared_expert_intermediate_size=32), 'glm4_moe': ROUTED,
    'phimoe': dict(num_local_experts=4),
    'deepseek_v3': dict(ROUTED, **LATENT, q_lora_rank=16), 'ernie4_5_moe': dict(moe_num_experts=4, moe_k=2,
        moe_intermediate_size=32, moe_num_shared_experts=1),
    'gpt_oss': dict(num_local_experts=4, layer_types=['sliding_attention', 'full_attention']),
    'mamba': dict(state_size=8), 'falcon_h1': dict(mamba_d_ssm=64, **SSM | dict(mamba_d_head=16)),
    'bamba': dict(attn_layer_indices=[1], mamba_expand=2, **SSM),
    'jamba': dict(num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=8, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=4,
        use_mamba_kernels=False),
    'lfm2': dict(layer_types=['conv', 'full_attention']),
    'qwen3_next': dict(DELTA, **EXPERTS, shared_expert_intermediate_size=32),
    'gemma3': both({}, VISION, mm_tokens_per_image=4, image_token_index=999),
    'gemma4': both(dict(layer_types=['sliding_attention', 'full_attention'], hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=1000, global_head_dim=16), dict(VISION, num_key_value_heads=2, head_dim=16)),
    'mistral3': both(dict(model_type='mistral'), dict(VISION, model_type='pixtral', head_dim=16), image_token_index=10),
    'qwen2_5_vl': both(MROPE, QWEN_VISION), 'qwen3_vl': both(MROPE, dict(QWEN_VISION, deepstack_visual_indexes=[0])),
    'qwen3_vl_moe': both(MROPE | EXPERTS, dict(QWEN_VISION, deepstack_visual_indexes=[0])),
    'qwen3_5': both(DELTA, QWEN_VISION),
    'llama4': both(dict(intermediate_size_mlp=128, num_local_experts=2), dict(VISION, vision_output_dim=32,
        projector_input_dim=32, projector_output_dim=32)),
    'smolvlm': both(dict(model_type='llama'), VISION),
    'llava': both(dict(model_type='llama'), dict(VISION, model_type='clip_vision_model'), image_token_index=10),
    'internvl': both(dict(model_type='qwen2'), dict(VISION, image_size=[28, 28], patch_size=[14, 14])),
    'aya_vision': both(dict(model_type='cohere2'), VISION),
    'voxtral': dict(text_config=TEXT | dict(model_type='llama'), audio_config=dict(hidden_size=32, intermediate_size=64,
        num_hidden_layers=1, num_attention_heads=2)),
}


def hf_config_of(model_type):
    sizes, known = ARCHITECTURES[model_type], CONFIG_MAPPING[model_type]
    return known(**(sizes if 'text_config' in sizes else TEXT | sizes))


def save_model(model_type, folder):
    "A model whose weights are large enough for layers to matter."
    from llmft.model.base import choose_attention
    hf_config = hf_config_of(model_type)
    torch.manual_seed(0)
    whole = type(hf_config) in AutoModelForImageTextToText._model_mapping # with the parts that are not loaded
    if whole: model = AutoModelForImageTextToText.from_config(hf_config, dtype=torch.float32)
    else:
        attention = choose_attention('cpu', hf_config=hf_config)[0]
        model = empty_model(hf_config, attention, device='cpu', dtype=torch.float32)
    for p in model.parameters():
        if p.ndim > 1: p.data.normal_(0, .1)
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def difference(model, other):
    "The largest difference in logits, as a fraction of the largest logit."
    ids = torch.arange(20, 60)[None]
    with torch.no_grad(): a, b = (m.eval()(input_ids=ids, use_cache=False).logits for m in (model, other))
    return ((a - b).abs().max()/b.abs().max()).item()


def plan_error(config, hf_config):
    "How far the highest moment of a plan is from that of the same steps on this CPU."
    peaks = [max(size for size, *_ in memory_peaks(dry_run(config, hf_config, find_gpu('CPU'), device)[0]).values())
             for device in ('meta', 'cpu')]
    return abs(peaks[0]/peaks[1] - 1)


def weights_error(config, hf_config):
    "How far the weights of a plan are from those that are loaded."
    tracker = dry_run(config, hf_config, find_gpu('CPU'))[0]
    planned = sum(max(size, 0) for n, size, *_ in tracker.events if tracker.categories[n] == 'weights')
    return abs(planned/_storage_bytes(load_base(config)) - 1)


def plain(folder, run): # base and adapter, by transformers and peft alone
    collection = auto_class(load_hf_config(run.config))
    base = collection.from_pretrained(folder, dtype=torch.float32, attn_implementation='eager')
    return PeftModel.from_pretrained(base, run.path/'adapter')


def find_out(model_type, folder):
    "A row of the table: each step of a run, with a tiny model."
    folder = Path(folder)
    base, rows = save_model(model_type, folder/'base'), save_rows(folder/'rows.jsonl', alpaca_rows(16))
    def settings(**keys):
        shutil.rmtree(folder/'run', ignore_errors=True)
        short = dict(adapter='lora', bf16=False, lora_r=4, max_steps=5, val_set_size=0, save_strategy='no',
                     sample_packing=False, sequence_len=128)
        return tiny_config(base, rows, folder/'run', **short | keys)
    config = settings()
    hf_config, model = load_hf_config(config), load_base(config)
    try: packs = check_packing(model, settings(sample_packing=True)) is None
    except UserError: packs = False
    row = dict(model=type(model).__name__, attention=attention_for(config, hf_config, find_gpu('CPU')),
               left_out=[*bypassed_parts(model)], packs=packs, experts=expert_targets(model))
    assert plan_error(config, hf_config) < .01
    run = finetune(config, say=None, force=True)
    assert len([m for m in run.metrics if 'loss' in m]) == 5
    tuned, other = load_run(run.path).model, plain(base, run)
    assert difference(other, tuned) < 1e-3 and difference(model, tuned) > 1e-3
    assert not any('lora' in name and part in name for part in row['left_out'] for name, _ in tuned.named_parameters())
    merged = load_run(merge_adapter(run.path, folder/'merged')).model
    assert difference(merged, tuned) < 1e-3
    config = settings(adapter='qlora', max_steps=2, quantize_moe_experts=bool(expert_weights(model)))
    assert weights_error(config, hf_config) < .01
    finetune(config, say=None, force=True)
    formats = parameter_report(add_adapter(load_base(config), config)).frozen_formats
    counts = {name: sum(kinds.values()) for name, kinds in formats.items()}
    return row | dict(in_4bit=round(counts.get('NF4', 0)/sum(counts.values()), 2))


def stored(): return json.loads(RESULTS.read_text(encoding='utf-8'))
