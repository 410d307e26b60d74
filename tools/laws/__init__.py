"""Laws of validation losses in the shares of a mix."""
