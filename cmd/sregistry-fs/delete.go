package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/sregistry/sregistry-fs/backends"
)

func (a *app) deleteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete IMAGE",
		Short: "Delete an image from its registry",
		Long: `Delete an image from its registry. It returns when the registry no longer has
it. With @version, only that version is deleted: if the tag has moved on, nothing is.

` + exitCodes,
		Example: `  sregistry-fs delete registry://vsoch/my-tool:1.2
  sregistry-fs delete /mnt/images/vsoch/my-tool:1.2.simg`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			onPath := func(path string) error {
				info, err := os.Lstat(path)
				if err == nil && info.IsDir() {
					return usagef("rmdir removes an empty collection", "%s is a collection", path)
				}
				if err == nil {
					err = os.Remove(path)
				}
				if err != nil {
					return mountErr("delete", path, err)
				}
				return nil
			}
			return a.withSession(cmd.Context(), args[0], onPath, func(s *session, subj subject) error {
				ref, version, err := subj.image()
				if err != nil {
					return err
				}
				if s.set.Deleter == nil {
					return &backends.Error{Op: "delete", Ref: ref, Kind: backends.ReadOnly, Err: fmt.Errorf("backend %s deletes no images", s.spec.driver.Scheme)}
				}
				rec, err := s.find(cmd.Context(), ref, version)
				if err != nil {
					return err
				}
				return s.cache.Catalog.Delete(cmd.Context(), rec)
			})
		},
	}
	a.cfg.registryFlags(cmd.Flags(), true, "")
	return cmd
}
