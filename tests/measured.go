// What a Go program does that another process started to measure it, as measured.ts has it for Deno's.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// result is what came out, and under "error" what went wrong.
type result map[string]interface{}

var saying sync.Mutex

// say says what came out, as a line of JSON.
func say(r result) {
	saying.Lock()
	defer saying.Unlock()
	json.NewEncoder(os.Stdout).Encode(r)
}

// check says what went wrong, and then nothing else.
func check(err error) {
	if err != nil {
		say(result{"error": fmt.Sprintf("%s: %v", os.Args[1], err)})
		select {}
	}
}

// endWithInput ends this process when its input ends, which the parent process keeps open.
func endWithInput() {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
}
