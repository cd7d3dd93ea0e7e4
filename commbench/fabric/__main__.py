from commbench.fabric.namespaces import main

main()
