"""What follows from a recipe by arithmetic alone: parameters, FLOPs, checkpoint sizes, time, energy. No
torch."""
