package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/fs"
)

func (a *app) recordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "record IMAGE",
		Short: "Show what is known of an image, as JSON",
		Long: `Show what is known of an image, as JSON in the shape of the Python client's
get_metadata. Labels, definition file and run script are read from the image itself
where that needs no download of the whole.

` + exitCodes,
		Example: `  sregistry-fs record registry://vsoch/hello-world:latest
  sregistry-fs record /mnt/images/vsoch/hello-world:latest.simg`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd.Context(), args[0], a.recordPath, func(s *session, subj subject) error {
				ref, version, err := subj.image()
				if err != nil {
					return err
				}
				rec, err := s.find(cmd.Context(), ref, version)
				if err != nil {
					return err
				}
				inspect, _ := s.cache.Inspect(cmd.Context(), rec, true)
				_, err = fmt.Fprintf(a.stdout, "%s\n", fs.Document(s.spec.driver.Scheme, rec, inspect))
				return err
			})
		},
	}
	a.cfg.registryFlags(cmd.Flags(), true, "")
	return cmd
}

// recordPath prints the record that the mount itself shows.
func (a *app) recordPath(path string) error {
	const name = "user.sregistry.record"
	buf := make([]byte, 64<<10) // the most that Linux lets an attribute have
	n, err := unix.Getxattr(path, name, buf)
	if err != nil {
		if _, statErr := os.Stat(path); statErr != nil {
			err = statErr
		}
		return mountErr("record", path, err)
	}
	_, err = fmt.Fprintf(a.stdout, "%s\n", buf[:n])
	return err
}
