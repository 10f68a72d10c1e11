#!/bin/sh
# Plays blkback or netback: follows the states of its devices and serves none.
# Files in the run directory make it fail:
#   refuse-vbd   it reports this file's text for each new device
#   crash-vbd    it ends at once
bin=$(dirname "$0")
case $(basename "$0") in
blkback) kind=vbd ;;
*) kind=vif ;;
esac
dom=$2
back=/local/domain/0/backend/$kind/$dom
front=/local/domain/$dom/device/$kind

get() { "$bin/xenstore" read "$1" 2>/dev/null; }
put() { "$bin/xenstore" write "$1" "$2"; }

# A medium that is there is told of by its size.
look() {
    params=$(get "$back/$1/params")
    if [ "$params" != "$(get "$back/$1/taken")" ]; then
        if [ -e "$DOMUS_RUN_DIR/refuse-medium" ] && [ -n "$params" ]; then
            put "$back/$1/hotplug-error" "$(cat "$DOMUS_RUN_DIR/refuse-medium")"
        fi
        put "$back/$1/taken" "$params"
        put "$back/$1/sectors" 8
    fi
}

step() {
    look "$1"
    case $(get "$back/$1/state"):$(get "$front/$1/state") in
    1:*)
        if [ -e "$DOMUS_RUN_DIR/refuse-$kind" ]; then
            put "$back/$1/hotplug-error" "$(cat "$DOMUS_RUN_DIR/refuse-$kind")"
            put "$back/$1/hotplug-status" error
        else
            put "$back/$1/hotplug-status" connected
            put "$back/$1/state" 2
        fi
        ;;
    2:3 | 2:4) put "$back/$1/state" 4 ;;
    5: | 5:1 | 5:6) put "$back/$1/state" 6 ;;
    esac
}

while [ -n "$(get "/local/domain/$dom/vm")" ]; do
    if [ -e "$DOMUS_RUN_DIR/crash-$kind" ]; then
        exit 7
    fi
    for device in $("$bin/xenstore" list "$back" 2>/dev/null); do
        step "$device"
    done
    sleep 0.05
done
