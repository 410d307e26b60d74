from tests.megatron_patches.small_run import train
def train_cut(*flags):
    from emma.megatron_patches import even_blocks
    even_blocks.BLOCK_BYTES = 2000
    return train(*flags)
