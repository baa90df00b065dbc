//! Several groups at once, and work that overlaps with computation.
