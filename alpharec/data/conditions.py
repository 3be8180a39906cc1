"""Conditions on columns of a table, in SQL, that choose items to recommend."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from alpharec.data.dataset import CatalogError


@dataclass(frozen=True)
class Condition:
    """An SQL condition on columns of a table, e.g. ``category = 'Toys' AND price < 20``."""

    text: str
    expression: pl.Expr
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition that ``recommend.where`` states.

        Raises:
            CatalogError: it is not an SQL condition.
        """
        try:
            expression = pl.sql_expr(text)
        except pl.exceptions.PolarsError as error:
            raise CatalogError(
                f"recommend.where = {text}: is not an SQL condition (got {_first_line(error)}); write it like "
                "--recommend.where \"category = 'Toys' AND price < 20\""
            ) from error
        return cls(text, expression, tuple(dict.fromkeys(expression.meta.root_names())))

    @property
    def content(self) -> list[str]:
        """What the items that meet it depend on, beside the table. CURRENT_DATE is a date in the expression."""
        return [self.text, str(self.expression)]

    def met(self, table: pl.DataFrame, place: str) -> pl.Series:
        """Return which rows meet the condition; a row for which it is null does not.

        Raises:
            CatalogError: the types of the columns do not fit, or the result is neither true nor false.
        """
        try:
            met = table.with_columns(met=self.expression)["met"]
            problem = "" if met.dtype == pl.Boolean else f"its value is {met.dtype}, not true or false"
        except pl.exceptions.PolarsError as error:
            problem = _first_line(error)
        if problem:
            there = ", ".join(f"{name} {table.schema[name]}" for name in self.columns) or "none"
            raise CatalogError(
                f"{place}: recommend.where = {self.text} does not fit its columns {there} (got {problem}); compare "
                "texts with texts in single quotes, and write TRY_CAST(price AS DOUBLE) for a text that is a number"
            )
        return met.fill_null(value=False)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
