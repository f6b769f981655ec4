"$test_program" --ignored --exact inside::a_device_is_made_by_ioctl
