"""The kernels themselves, in Triton (Tillet et al. 2019). kernels/ops.py calls them, and nothing else imports
this file: Triton isn't everywhere. What is a pointer and what a number, its compiler finds at the call.

All of them compute in float32 and round where they store. Shapes: N rows, D width of a row, B rows of a
batch, T tokens, H heads, V vocabulary.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def rms_norm(
    x, update, weight, total, y, scale, rows, width, epsilon, multiplier,
    ADDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = weight * z / sqrt(mean(z^2) + epsilon) for z = x (N x D), or z = x + multiplier * update, which
    goes to `total`. A block takes ROWS rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        z += multiplier * tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        # The backward pass reads what is stored, so the norm is that of the rounded sum.
        z = z.to(total.dtype.element_ty)
        tl.store(total + at, z, mask=inside)
        z = z.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(z * z, axis=1) / width + epsilon)
    tl.store(scale + row, inverse, mask=row < rows)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    normal = z * inverse[:, None] * w[None, :]
    tl.store(y + at, normal.to(y.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward(
    gradient, z, scale, weight, kept, output, rows, width,
    ADDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of z through its norm, and where it is kept as well, that of what it is kept for added."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    inverse = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    normal = tl.load(z + at, mask=inside, other=0.0).to(tl.float32) * inverse
    inner = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32) * w[None, :]
    along = tl.sum(inner * normal, axis=1) / width
    result = (inner - normal * along[:, None]) * inverse
    if ADDS:
        result += tl.load(kept + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def rotate(
    q, k, cos, sin, rotated_q, rotated_k, tokens, heads, key_heads, width, half,
    q_batch, q_head, q_token, k_batch, k_head, k_token, table_batch, table_token,
    BACKWARD: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """RoPE of the queries and keys of a token: number i of a head turns with number i + half. What lies
    behind them (REST, at most) stays. The backward pass turns back."""
    batch, token = (tl.program_id(0) // tokens).to(tl.int64), (tl.program_id(0) % tokens).to(tl.int64)
    place = tl.program_id(0).to(tl.int64)
    table = batch * table_batch + token * table_token
    column = tl.arange(0, HALF)
    here = column < half
    cos_1 = tl.load(cos + table + column, mask=here, other=0.0).to(tl.float32)[None, :]
    cos_2 = tl.load(cos + table + half + column, mask=here, other=0.0).to(tl.float32)[None, :]
    sin_1 = tl.load(sin + table + column, mask=here, other=0.0).to(tl.float32)[None, :]
    sin_2 = tl.load(sin + table + half + column, mask=here, other=0.0).to(tl.float32)[None, :]
    if BACKWARD:
        sin_1, sin_2 = -sin_2, -sin_1
    _rotate_heads(
        q + batch * q_batch + token * q_token, q_head, rotated_q + place * heads * width,
        heads, width, half, cos_1, cos_2, sin_1, sin_2, HEADS, HALF, REST,
    )  # fmt: skip
    _rotate_heads(
        k + batch * k_batch + token * k_token, k_head, rotated_k + place * key_heads * width,
        key_heads, width, half, cos_1, cos_2, sin_1, sin_2, KEY_HEADS, HALF, REST,
    )  # fmt: skip


@triton.jit
def _rotate_heads(
    x, stride, y, heads, width, half, cos_1, cos_2, sin_1, sin_2,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < half)
    first = tl.load(x + head * stride + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + head * stride + half + column, mask=inside, other=0.0).to(tl.float32)
    to = y + head * width + column
    tl.store(to, (first * cos_1 - second * sin_1).to(y.dtype.element_ty), mask=inside)
    tl.store(to + half, (second * cos_2 + first * sin_2).to(y.dtype.element_ty), mask=inside)
    if REST > 0:
        behind = 2 * half + tl.arange(0, REST)[None, :]
        left = (head < heads) & (behind < width)
        tl.store(y + head * width + behind, tl.load(x + head * stride + behind, mask=left), mask=left)


@triton.jit
def swiglu(gate, up, product, width, gate_row, up_row, BLOCK: tl.constexpr):
    """silu(gate) * up (N x D), of rows that may stand apart."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        product + row * width + column, (g * tl.sigmoid(g) * u).to(product.dtype.element_ty), mask=inside
    )


@triton.jit
def swiglu_backward(
    gradient, gate, up, product, for_gate, for_up, width, gate_row, up_row, for_gate_row, for_up_row,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The product again, and the gradients of gate and up from the product's."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32)
    open_ = tl.sigmoid(g)
    activated = g * open_
    tl.store(product + row * width + column, (activated * u).to(product.dtype.element_ty), mask=inside)
    tl.store(for_up + row * for_up_row + column, (d * activated).to(for_up.dtype.element_ty), mask=inside)
    slope = open_ * (1 + g * (1 - open_))
    tl.store(
        for_gate + row * for_gate_row + column, (d * u * slope).to(for_gate.dtype.element_ty), mask=inside
    )


@triton.jit
def cross_entropy(
    logits, labels, losses, vocabulary, row_stride, smoothing, SMOOTHS: tl.constexpr, BLOCK: tl.constexpr
):
    """The loss of a row of logits (V), which becomes its gradient in place: read twice, written once."""
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits + row * row_stride
    label = tl.load(labels + row)
    target = tl.load(start_of_row + label).to(tl.float32)
    peak, whole, added = -float("inf"), 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(start_of_row + column, mask=column < vocabulary, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(z, axis=0))
        whole = whole * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher), axis=0)
        peak = higher
        if SMOOTHS:
            added += tl.sum(tl.where(column < vocabulary, z, 0.0), axis=0)
    spread = smoothing / vocabulary
    tl.store(losses + row, tl.log(whole) + peak - (1 - smoothing) * target - spread * added)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(start_of_row + column, mask=column < vocabulary, other=-float("inf")).to(tl.float32)
        gradient = tl.exp(z - peak) / whole - spread - tl.where(column == label, 1 - smoothing, 0.0)
        tl.store(start_of_row + column, gradient.to(logits.dtype.element_ty), mask=column < vocabulary)


@triton.jit
def round_rows(
    x, columns, numbers, scale, width, x_stride,
    SCALES: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of x (N x D), or of x times `columns` (D), divided by its scale, which makes its largest number
    448, E4M3's largest. Divisions round as IEEE's do: the CPU's path gives the same bits."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if SCALES:
        value *= tl.load(columns + column, mask=inside, other=0.0)
    largest = tl.maximum(tl.max(tl.abs(value), axis=0), SMALLEST)
    own = tl.div_rn(largest, 448.0)
    tl.store(scale + row, own)
    tl.store(numbers + row * width + column, tl.div_rn(value, own).to(numbers.dtype.element_ty), mask=inside)
