"""The training loss without all logits: only counted positions reach the output head, a chunk at a time.

For 4,096 tokens and a vocabulary of 49,152 tokens, the logits alone are 800 MB in float32, their gradients as much
again. Here only the positions that the loss counts go through the output head, at most `CHUNK` at once. Each chunk's
gradients are computed at once, so its logits are dropped before the next chunk's exist (as in Liger Kernel:
Hsu et al., 2024, arXiv 2410.10989).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from types import MethodType

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from teacher.model import soft_cap, unwrap_peft

CHUNK = 1024  # positions whose logits exist at once
IGNORED = -100


def use_counted_loss(model, chunk: int = CHUNK) -> None:
    """Let `model(input_ids, labels, ...)` compute its loss from the counted positions only; it returns no logits.

    The forward pass of the causal model itself is replaced, inside of any PEFT wrapper, so that DDP, DeepSpeed and FSDP
    see an ordinary forward pass. A model that scales its logits in a way of its own keeps its forward pass.

    Args:
        model: a causal model, or a PEFT model.
        chunk: positions whose logits exist at once.
    """
    causal = unwrap_peft(model)
    if any(getattr(causal.config, name, None) not in (None, 1.0) for name in ("logits_scaling", "logit_scale")):
        return  # Granite, Cohere

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, loss_weights: Tensor | None = None, **inputs):
        if labels is None:
            return type(self).forward(self, input_ids=input_ids, **inputs)
        hidden = self.base_model(input_ids=input_ids, **inputs).last_hidden_state[:, :-1]
        counted = labels[:, 1:] != IGNORED
        weights = None if loss_weights is None else loss_weights[:, 1:][counted]
        loss = head_loss(self, hidden[counted], labels[:, 1:][counted], weights, chunk)
        return CausalLMOutput(loss=loss)

    causal.forward = MethodType(forward, causal)


def head_loss(causal, hidden: Tensor, labels: Tensor, weights: Tensor | None, chunk: int) -> Tensor:
    """Compute the (weighted) mean cross-entropy of positions through the output head.

    Args:
        causal: the causal model; its head is called as a module, so that ZeRO-3 gathers its weight and PEFT adds the
            trained rows.
        hidden: last hidden states [positions, width].
        labels: the next tokens [positions].
        weights: of the positions [positions]; None: all 1.
        chunk: positions whose logits exist at once.
    """
    cap = soft_cap(causal)

    def loss(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # names as in `functional.linear`
        if weights is None and input.is_cuda and importlib.util.find_spec("liger_kernel"):
            return liger_loss(input, weight, bias, labels, cap)
        return ChunkedCrossEntropy.apply(input, weight, bias, labels, weights, cap, chunk)

    with linear_replaced(loss):
        return causal.get_output_embeddings()(hidden)


@contextlib.contextmanager
def linear_replaced(function: Callable[..., Tensor]) -> Iterator[None]:
    """Let every linear layer call another function of (input, weight, bias) in place of `functional.linear`.

    `nn.Linear`, PEFT's layers and DeepSpeed, which replaces it too, all look the function up when they are called.
    """
    original = functional.linear
    functional.linear = function
    try:
        yield
    finally:
        functional.linear = original


def liger_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, cap: float | None) -> Tensor:
    """The mean loss by Liger's fused kernel. NOT RUN YET: it needs a GPU with Liger Kernel installed."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    dtype = product_dtype(hidden)
    bias = None if bias is None else bias.to(dtype)
    return LigerFusedLinearCrossEntropyLoss(softcap=cap)(weight.to(dtype), hidden.to(dtype), labels, bias)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear layer's outputs; the gradients are computed in the forward pass, chunk by chunk.

    Logits have the dtype of the matrix products (bf16 under autocast), softmax and sums are at least float32.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        cap: float | None,
        chunk: int,
    ) -> Tensor:
        """Compute the loss and its gradients, not yet divided by the number of positions.

        Args:
            ctx: of autograd.
            hidden: [positions, width].
            weight: of the layer [vocabulary, width].
            bias: of the layer [vocabulary].
            labels: token numbers [positions].
            weights: of the positions in the mean [positions]; None: all 1.
            cap: logits are cap · tanh(logits / cap); None: as they are.
            chunk: positions whose logits exist at once.

        Returns:
            The weighted mean of −log softmax(logits)[label], a scalar.
        """
        needs = ctx.needs_input_grad
        dtype, accurate = product_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32)
        low_weight, low_bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
        total = hidden.new_tensor(len(labels), dtype=accurate) if weights is None else weights.sum(dtype=accurate)
        loss = hidden.new_zeros((), dtype=accurate)
        hidden_grad = torch.empty_like(hidden) if needs[0] else None
        weight_grad, bias_grad = None, torch.zeros_like(bias, dtype=accurate) if needs[2] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), chunk):
                part = slice(start, start + chunk)
                low_hidden = hidden[part].to(dtype)
                logits = low_hidden @ low_weight.T
                logits = (logits if low_bias is None else logits + low_bias).to(accurate)
                slope = None
                if cap is not None:
                    logits = logits.div_(cap).tanh_()
                    slope, logits = 1 - logits.square(), logits * cap
                targets = labels[part, None]
                log_probs = logits.log_softmax(1)
                losses = -log_probs.gather(1, targets)[:, 0]
                loss += losses.sum() if weights is None else losses @ weights[part].to(accurate)
                grad = log_probs.exp_()  # softmax minus the target
                grad.scatter_add_(1, targets, grad.new_full(targets.shape, -1.0))
                if weights is not None:
                    grad *= weights[part, None]
                if slope is not None:
                    grad *= slope
                if bias_grad is not None:
                    bias_grad += grad.sum(0)
                grad = grad.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[part] = grad @ low_weight
                if needs[1]:
                    product = grad.T @ low_hidden
                    weight_grad = product.to(accurate) if weight_grad is None else weight_grad.add_(product)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad, total)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return loss / total

    @staticmethod
    def backward(ctx, loss_grad: Tensor):
        """Scale the gradients of the forward pass."""
        hidden_grad, weight_grad, bias_grad, total = ctx.saved_tensors
        scale, (weight_dtype, bias_dtype) = loss_grad / total, ctx.dtypes
        if hidden_grad is not None:
            hidden_grad = hidden_grad.mul_(scale)
        if weight_grad is not None:
            weight_grad = weight_grad.mul_(scale).to(weight_dtype)
        if bias_grad is not None:
            bias_grad = bias_grad.mul_(scale).to(bias_dtype)
        return hidden_grad, weight_grad, bias_grad, None, None, None, None


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's, where it is on."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
