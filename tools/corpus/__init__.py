"""Raw text → integrated → filtered → deduplicated → split text, with statistics."""
