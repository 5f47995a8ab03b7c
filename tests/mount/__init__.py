"""Every operation on a real mount, each expectation checked on the kernel's overlayfs as well."""
