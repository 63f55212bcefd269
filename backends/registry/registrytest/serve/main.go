// Serve runs the registry of package registrytest for other processes. It
// prints {"url": …} on one line when it is ready, and ends on SIGINT or SIGTERM.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

func main() {
	var o registrytest.Options
	var u registrytest.User
	pflag.StringVar(&o.Addr, "addr", "", "address to listen on (default: a free port of 127.0.0.1)")
	pflag.StringVar(&o.Dir, "dir", "", "folder for images (default: temporary)")
	pflag.StringVar(&u.Name, "user", "vsoch", "login name of the one account")
	pflag.StringVar(&u.Token, "token", "0123456789abcdef0123456789abcdef01234567", "its token")
	pflag.BoolVar(&u.Superuser, "superuser", false, "make it a superuser")
	pflag.BoolVar(&o.NoLimits, "no-limits", false, "turn request and download limits off")
	pflag.BoolVar(&o.DeleteWorks, "delete-works", false, "repair DELETE, which answers 500 as shipped")
	pflag.BoolVar(&o.Worker, "worker", false, "turn md5 into sha256 right after a push")
	pflag.BoolVar(&o.PrivateByDefault, "private", false, "make new collections private")
	pflag.Int64Var(&o.DownloadRate, "download-rate", 0, "bytes a second of each download (0: unbounded)")
	pflag.Parse()
	o.Users = []registrytest.User{u}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run(o registrytest.Options) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	s, err := registrytest.New(o)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"url": s.URL}); err != nil {
		return err
	}
	<-end
	return nil
}
