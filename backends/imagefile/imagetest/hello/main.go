// Command hello is the program inside test images: static, small, and with
// something to say about the root it runs in.
package main

import "os"

func main() {
	os.Stdout.WriteString("hello from the image\n")
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.Write(release)
}
