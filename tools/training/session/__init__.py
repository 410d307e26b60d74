"""What this project does around Megatron's training loop: one file per concern, tied together in
`session.py`.

The loop itself stays Megatron's. A seam is a function of `megatron.training.training` that the loop calls. A
part answers a seam by a method of the same name, whose first parameter is what it wraps; so each part can act
before and after Megatron's function, or in its place. `session.py` lists the parts, checks the seams and
installs them.
"""
