"""Small products of matrices in registers, in LLVM's own language, which numba compiles with the rest.

A compiler turns loops over columns into vectors, but does not keep a block of sums in registers over the
whole depth of a product, which is what makes it quick (Goto & van de Geijn 2008, section 4). Here vectors are
named as such; LLVM cuts them into what the processor has. A multiplication and an addition may become one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

LANES = 16
"""Numbers in a vector: one register of AVX-512, two of AVX, four of NEON."""
_LARGE = bool(binding.get_host_cpu_features().get("avx512f"))
ROWS, WIDEST = (8, 2 * LANES) if _LARGE else (4, LANES)
"""Rows, and at most columns, of a block: as many as there are registers for."""

FLOAT, INTEGER = ir.FloatType(), ir.IntType(64)


class _Vectors:
    """Instructions on vectors of so many float32; pointers are to single ones."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self._builder, self._lanes = builder, lanes
        self.type = ir.VectorType(FLOAT, lanes)

    def at(self, pointer: ir.Value, *offsets: ir.Value | int) -> ir.Value:
        """Return the pointer moved by the product of the offsets."""
        whole, *others = [ir.Constant(INTEGER, o) if isinstance(o, int) else o for o in offsets]
        for other in others:
            whole = self._builder.mul(whole, other)
        return self._builder.gep(pointer, [whole], source_etype=FLOAT)

    def load(self, pointer: ir.Value) -> ir.Value:
        """Return the vector that begins there."""
        return self._builder.load(self._cast(pointer), align=4, typ=self.type)

    def store(self, vector: ir.Value, pointer: ir.Value) -> None:
        """Write a vector there."""
        self._builder.store(vector, self._cast(pointer), align=4)

    def spread(self, number: ir.Value) -> ir.Value:
        """Return a vector with a number in all its lanes."""
        undefined, places = ir.Constant(self.type, ir.Undefined), ir.VectorType(ir.IntType(32), self._lanes)
        first = self._builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        return self._builder.shuffle_vector(first, undefined, ir.Constant(places, [0] * self._lanes))

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """Return x y + z."""
        product = self._builder.fmul(x, y, flags=("contract",))
        return self._builder.fadd(product, z, flags=("contract",))

    def _cast(self, pointer: ir.Value) -> ir.Value:
        return self._builder.bitcast(pointer, self.type.as_pointer())


def block(rows: int, vectors: int, lanes: int, adds: bool) -> Any:
    """Return a numba function of a product of (rows, depth) and (depth, vectors · lanes) matrices.

    Its arguments are a, a0, a_row, a_step, b, b0, b_row, c, c0, c_row, depth, alpha, beta, see `product` in
    `kernel`; without ``adds`` alpha and beta do not matter.
    """

    @intrinsic
    def multiply(typing, a, a0, a_row, a_step, b, b0, b_row, c, c0, c_row, depth, alpha, beta):  # type: ignore
        numbers, whole = types.float32, types.int64
        signature = types.void(
            a, whole, whole, whole, b, whole, whole, c, whole, whole, whole, numbers, numbers
        )  # fmt: skip

        def generate(context, builder, signature, arguments):  # type: ignore
            _, a0, a_row, a_step, _, b0, b_row, _, c0, c_row, depth, alpha, beta = arguments
            on = _Vectors(builder, lanes)
            left, right, out = (
                on.at(_data(context, builder, signature, arguments, i), first)
                for i, first in ((0, a0), (4, b0), (7, c0))
            )
            lefts = [on.at(left, a_row, r) for r in range(rows)]

            def step(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                here = on.at(right, k, b_row)
                columns = [on.load(on.at(here, v * lanes)) for v in range(vectors)]
                spread = [on.spread(builder.load(on.at(x, k, a_step), typ=FLOAT)) for x in lefts]
                factors = [(x, y) for x in spread for y in columns]
                return [on.multiply_add(x, y, z) for (x, y), z in zip(factors, sums, strict=True)]

            for i, total in enumerate(_summed(builder, depth, on.type, rows * vectors, step)):
                r, v = divmod(i, vectors)
                place = on.at(on.at(out, c_row, r), v * lanes)
                if adds:
                    kept = builder.fmul(on.spread(beta), on.load(place), flags=("contract",))
                    total = on.multiply_add(on.spread(alpha), total, kept)
                on.store(total, place)
            return context.get_dummy_value()

        return signature, generate

    return multiply


def _summed(builder: ir.IRBuilder, depth: ir.Value, vector: ir.Type, many: int, step: Any) -> list[ir.Value]:
    """Return ``many`` sums after the steps k = 0 … depth − 1, 0 without any; step(k, sums) → sums."""
    before = builder.block
    body, after = builder.append_basic_block("step"), builder.append_basic_block("summed")
    zeros = [ir.Constant(vector, [0.0] * vector.count)] * many
    zero, one = ir.Constant(INTEGER, 0), ir.Constant(INTEGER, 1)
    builder.cbranch(builder.icmp_signed(">", depth, zero), body, after)
    builder.position_at_end(body)
    k, sums = builder.phi(INTEGER), [builder.phi(vector) for _ in range(many)]
    new = step(k, sums)
    following = builder.add(k, one)
    builder.cbranch(builder.icmp_signed("<", following, depth), body, after)
    for phi, first, later in zip([k, *sums], [zero, *zeros], [following, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, body)
    builder.position_at_end(after)
    totals = [builder.phi(vector) for _ in range(many)]
    for total, first, later in zip(totals, zeros, new, strict=True):
        total.add_incoming(first, before)
        total.add_incoming(later, body)
    return totals


@intrinsic
def turn(typing, a, a0, a_row, b, b0, b_row):  # type: ignore
    """b (4, 4) = a (4, 4) transposed, in flat arrays from a0 and b0 on, rows a_row and b_row apart."""

    def generate(context, builder, signature, arguments):  # type: ignore
        on, places = _Vectors(builder, 4), ir.VectorType(ir.IntType(32), 4)

        def row(i: int, r: int) -> ir.Value:
            first = on.at(_data(context, builder, signature, arguments, i), arguments[i + 1])
            return on.at(first, arguments[i + 2], r)

        rows = [on.load(row(0, r)) for r in range(4)]
        for _ in range(2):  # a perfect shuffle of the 16 numbers, twice
            rows = [
                builder.shuffle_vector(x, y, ir.Constant(places, order))
                for x, y in ((rows[0], rows[2]), (rows[1], rows[3]))
                for order in ([0, 4, 1, 5], [2, 6, 3, 7])
            ]
        for r, numbers in enumerate(rows):
            on.store(numbers, row(3, r))
        return context.get_dummy_value()

    return types.void(a, types.int64, types.int64, b, types.int64, types.int64), generate


@intrinsic
def power_of_two(typing, n):  # type: ignore
    """2ⁿ as a float32, for an int32 n in −126 … 127: the exponent of a number, written as such."""

    def generate(context, builder, signature, arguments):  # type: ignore
        whole = ir.IntType(32)
        exponent = builder.add(arguments[0], ir.Constant(whole, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(whole, 23)), FLOAT)

    return types.float32(types.int32), generate


def _data(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, i: int) -> ir.Value:
    """Return the pointer to the first number of the i-th argument, an array."""
    return context.make_array(signature.args[i])(context, builder, arguments[i]).data
