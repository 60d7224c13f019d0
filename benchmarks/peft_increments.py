"""What other kinds of adapters take beside LoRA of rank 32 on q_proj and v_proj: as peft's own benchmark measured it,
as llmft plans it, and as a dry run of that benchmark's step has it.

The figures are from method_comparison/MetaMathQA/results of github.com/huggingface/peft at commit 52903c83 (7 January
2026; an L40S, torch 2.9.0, transformers 4.57.1, peft 0.18.1.dev0): `accelerator_memory_max`, the most memory that
PyTorch had reserved. Llama 3.2 3B in bfloat16, adapters in float32, no autocast, 4 rows of at most 768 tokens with a
mask, no checkpointing, the scores of all tokens, AdamW."""
import json, warnings
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch

from llmft.config.config import load_config
from llmft.memory.dryrun import (
    StorageTracker, autocast, memory_peaks, model_tensors, patched, sdpa_with_kernel, training_step)
from llmft.memory import plan
from llmft.memory.plan import _kernel_choice, plan_memory
from llmft.model.adapters import import_peft
from llmft.model.gpus import GiB, find_gpu

RESULTS = Path(__file__).parent/'results'/'peft_increments.json'
LLAMA_3B = dict(
    model_type='llama', vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
    num_attention_heads=24, num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5,
    tie_word_embeddings=True, rope_theta=500000., rope_scaling=dict(rope_type='llama3', factor=32., low_freq_factor=1.,
    high_freq_factor=4., original_max_position_embeddings=8192))
MEASURED = {'LoRA 32': 22286434304, 'LoRA 64': 22554869760, 'DoRA 32': 24540872704, 'LoRA 10, MLP': 24693964800}
KINDS = { # as `LoraConfig` of peft wants it
    'LoRA 32': dict(r=32, lora_alpha=64), 'LoRA 64': dict(r=64, lora_alpha=128),
    'DoRA 32': dict(r=32, lora_alpha=64, use_dora=True),
    'LoRA 10, MLP': dict(r=10, lora_alpha=20, target_modules=['gate_proj', 'up_proj', 'down_proj'])}
LENGTH, ROWS, GPU = 768, 4, 'L40S'


def planned(kind, chunked=True):
    "Bytes of llmft's plan for such a run, without what it assumes for CUDA and the allocator."
    keys = KINDS[kind]
    config = load_config(dict(
        base_model='llama-3.2-3b', datasets=[dict(path='rows.jsonl')], adapter='lora', lora_r=keys['r'],
        lora_alpha=keys['lora_alpha'], lora_dropout=0., peft_use_dora='use_dora' in keys, bf16=True,
        lora_target_modules=keys.get('target_modules', ['q_proj', 'v_proj']), micro_batch_size=ROWS,
        sequence_len=LENGTH, sample_packing=False, gradient_accumulation_steps=1, gradient_checkpointing=False,
        val_set_size=0, optimizer='adamw_torch', chunked_cross_entropy=chunked))
    parts = plan_memory(config, GPU, LLAMA_3B).parts
    return sum(n for part, n in parts.items() if part not in ('CUDA', 'allocator'))


def planned_with_layers_of_peft(kind, chunked=True):
    plan._cached_dry_run.cache_clear()
    with patched((plan, 'fuse_adapters', lambda model: 0)): bytes_ = planned(kind, chunked)
    plan._cached_dry_run.cache_clear()
    return bytes_


def same_step(kind, length, masked=True, amp=nullcontext):
    "Bytes at the highest moment of that benchmark's own step, without weights; or as it would be without a mask."
    from transformers import AutoConfig, AutoModelForCausalLM
    peft, tracker = import_peft(), StorageTracker(packed=masked) # is a mask needed
    sdpa = sdpa_with_kernel(_kernel_choice(find_gpu(GPU), 'sdpa'))
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        stack.enter_context(patched((torch.nn.functional, 'scaled_dot_product_attention', sdpa)))
        stack.enter_context(torch.device('meta'))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA_3B), dtype=torch.bfloat16)
        for t in model_tensors(model.requires_grad_(False)): tracker.track(t, 'weights')
        with tracker: model = peft.get_peft_model(model, peft.LoraConfig(task_type='CAUSAL_LM', **KINDS[kind]))
        params = [p for p in model.parameters() if p.requires_grad]
        for p in params: tracker.track(p, 'adapter')
        batch = {k: torch.zeros((ROWS, length), dtype=torch.long) for k in ('input_ids', 'labels', 'attention_mask')}
        kept = [] # that benchmark holds what the model returns until the step is over
        def loss(model, batch):
            kept.append(model(**batch))
            return kept[0].loss
        training_step(model.train(), batch, loss, torch.optim.AdamW(params), tracker, amp)
    return max(used for used, *_ in memory_peaks(tracker, 512).values())


def fitting_length():
    "The rows with which LoRA 32 takes what was measured, if the allocator loses 4%; memory grows in a straight line."
    short, long = (1.04*same_step('LoRA 32', n) for n in (640, LENGTH))
    return round(640 + (LENGTH - 640)*(MEASURED['LoRA 32'] - short)/(long - short))


def main():
    length = fitting_length()
    ways = {
        'planned': planned, "planned, with peft's layers": planned_with_layers_of_peft,
        "with peft's layers and all scores": lambda kind: planned_with_layers_of_peft(kind, chunked=False),
        'its step': lambda kind: same_step(kind, LENGTH),
        f'its step, {length} tokens': lambda kind: round(1.04*same_step(kind, length)), 'measured': MEASURED.get}
    rows = {way: {kind: round(f(kind)/GiB, 3) for kind in KINDS} for way, f in ways.items()}
    whole, unmasked = (same_step('LoRA 32', LENGTH, masked) for masked in (True, False))
    bf16 = same_step('LoRA 32', LENGTH, False, partial(autocast, torch.bfloat16))
    all_scores = planned_with_layers_of_peft('LoRA 32', False)
    first = {'mask': whole - unmasked, 'no autocast': unmasked - bf16, 'scores kept': bf16 - all_scores}
    first = {name: round(n/GiB, 2) for name, n in first.items()} # what makes up the difference in the first column
    RESULTS.write_text(json.dumps(dict(torch=torch.__version__, length=length, GiB=rows, first=first), indent=1) + '\n')
    for way, sizes in rows.items():
        first, *others = sizes.values()
        print(f'{way:>34} {first:7.2f}', *(f'{size - first:+7.2f}' for size in others))


if __name__ == '__main__': main()
