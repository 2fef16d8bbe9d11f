try:
    from tinydiff.cli import main

    status = main()
except KeyboardInterrupt:  # while the imports run; main answers it afterwards
    status = 130
raise SystemExit(status)
