"""Random language models on disk, for students that start from one."""

import torch
from tokenizers import Tokenizer, models
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<s>", "</s>", "some", "words"]
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
NETWORKS = {  # grouped keys and a separate output table; one table for both
    "llama": lambda rows: LlamaForCausalLM(LlamaConfig(vocab_size=rows, num_key_value_heads=2, **SMALL)),
    "gpt_neox": lambda rows: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=rows, tie_word_embeddings=True, **SMALL)),
}


def checkpoint(folder, network, codewords):
    """A random language model and its tokenizer on disk."""
    torch.manual_seed(1)
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="some")), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_tokens(codewords)
    model = network(len(tokenizer))
    with torch.no_grad():  # large enough that every weight matters; by default norms are one and all else is small
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
