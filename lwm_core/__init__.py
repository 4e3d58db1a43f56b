"""lwm_core: the Large World Model as a JAX library. Import the module you need."""
