"""AlphaRec on Ray: item titles and interactions in, recommendations out."""

__version__ = "0.1.0"
