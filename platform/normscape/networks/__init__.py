"""Networks: generator, discriminator, mapping, auxiliary, controller; 2D and 3D in one."""
